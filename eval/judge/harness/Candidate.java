import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.Arrays;
import java.util.stream.Collectors;

/** Runs in the candidate's sandbox and answers calls. Nothing here is trusted, and nothing here knows what is right. */
final class Candidate extends AnswerLoop {
    private final String[] names;
    private Method method;
    private Object target;

    private Candidate(String[] names) {
        this.names = names;
    }

    /** Arguments: the class, the method's name, its parameters' simple type names joined by commas. */
    public static void main(String[] args) throws Exception {
        new Candidate(args).run(new Wire(new NoReferences()));
    }

    @Override
    Object[] answer(Object[] arguments) throws ReflectiveOperationException {
        if (method == null) {
            load();
        }
        return new Object[] {"ok", method.invoke(target, arguments), arguments};
    }

    @Override
    Object[] threw(Throwable error) {
        return new Object[] {"error", String.valueOf(error)};
    }

    private void load() throws ReflectiveOperationException {
        Class<?> type = Class.forName(names[0]);
        Method found = find(type, names[1], names[2]);
        found.setAccessible(true);
        if (!Modifier.isStatic(found.getModifiers())) {
            var constructor = type.getDeclaredConstructor();
            constructor.setAccessible(true);
            target = constructor.newInstance();
        }
        method = found;
    }

    private static final class NoReferences implements Wire.References {
        @Override
        public int number(Object value) {
            throw new UnsupportedOperationException("a " + value.getClass().getName() + " cannot cross between the tests and the program");
        }

        @Override
        public Object object(int number, String[] types) {
            throw new IllegalArgumentException("no object was given away");
        }
    }

    private static Method find(Class<?> type, String name, String parameters) throws NoSuchMethodException {
        Method only = null;
        int count = 0;
        for (Method method : type.getDeclaredMethods()) {
            if (method.getName().equals(name)) {
                String own = Arrays.stream(method.getParameterTypes()).map(Class::getSimpleName).collect(Collectors.joining(","));
                if (own.equals(parameters)) {
                    return method;
                }
                only = method;
                count++;
            }
        }
        if (count != 1) {
            throw new NoSuchMethodException(name + "(" + parameters + ")");
        }
        return only;
    }
}
