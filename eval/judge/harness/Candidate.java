import java.io.EOFException;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.stream.Collectors;

/** Runs in the candidate's sandbox and answers calls. Nothing here is trusted, and nothing here knows what is right. */
final class Candidate {
    /** Arguments: the class, the method's name, its parameters' simple type names joined by commas. */
    public static void main(String[] args) throws Exception {
        Wire wire = new Wire(new NoReferences());
        Method method = null;
        Object target = null;
        String problem = null;
        try {
            Class<?> type = Class.forName(args[0]);
            method = find(type, args[1], args[2]);
            method.setAccessible(true);
            if (!java.lang.reflect.Modifier.isStatic(method.getModifiers())) {
                var constructor = type.getDeclaredConstructor();
                constructor.setAccessible(true);
                target = constructor.newInstance();
            }
        } catch (Throwable error) {
            problem = String.valueOf(error);
        }
        while (true) {
            Object[] arguments;
            try {
                arguments = (Object[]) wire.receive();
            } catch (EOFException error) {
                System.exit(0);
                return;
            }
            Object[] reply;
            try {
                if (problem != null) {
                    throw new IllegalStateException(problem);
                }
                reply = new Object[] {"ok", method.invoke(target, arguments), arguments};
            } catch (InvocationTargetException error) {
                reply = new Object[] {error.getCause() instanceof OutOfMemoryError ? "memory" : "error", String.valueOf(error.getCause())};
            } catch (Throwable error) {
                reply = new Object[] {"error", String.valueOf(error)};
            }
            try {
                wire.send(reply);
            } catch (IllegalArgumentException | UnsupportedOperationException error) {
                wire.send(new Object[] {"error", error.getMessage()});
            }
        }
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
