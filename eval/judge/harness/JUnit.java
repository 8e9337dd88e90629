import java.lang.annotation.Annotation;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.List;

/** Runs JUnit's tests, of version 4 and 5. Those that are disabled run too: a learner has not come to them yet. */
public final class JUnit {
    public static void run(Class<?>... classes) throws Throwable {
        int count = 0;
        for (Class<?> type : classes) {
            for (Method test : marked(type, "Test")) {
                var constructor = type.getDeclaredConstructor();
                constructor.setAccessible(true);
                Object suite = constructor.newInstance();
                try {
                    for (Method before : marked(type, "BeforeEach", "Before")) {
                        before.invoke(suite);
                    }
                    test.invoke(suite);
                    for (Method after : marked(type, "AfterEach", "After")) {
                        after.invoke(suite);
                    }
                } catch (InvocationTargetException error) {
                    throw new AssertionError(test.getName() + ": " + error.getCause());
                }
                count++;
            }
        }
        if (count == 0) {
            throw new IllegalStateException("there are no tests");
        }
    }

    private static List<Method> marked(Class<?> type, String... names) {
        List<Method> found = Arrays.stream(type.getDeclaredMethods())
                .filter(method -> Arrays.stream(method.getAnnotations()).map(Annotation::annotationType).map(Class::getSimpleName).anyMatch(Arrays.asList(names)::contains))
                .toList();
        found.forEach(method -> method.setAccessible(true));
        return found;
    }
}
