import java.io.EOFException;
import java.io.IOException;
import java.lang.reflect.Array;
import java.lang.reflect.InvocationTargetException;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Runs in the tests' sandbox, where no candidate code is: the method that the candidate defines is a call to its process. */
public final class Tests {
    private static final StandIns STAND_INS = new StandIns();
    private static final Wire WIRE = new Wire(STAND_INS);
    private static final java.io.PrintStream ERR = System.err;

    /** Argument: the class whose main is the tests. */
    public static void main(String[] args) {
        say(""); // that the tests got going
        try {
            var main = Class.forName(args[0]).getDeclaredMethod("main", String[].class);
            main.setAccessible(true);
            main.invoke(null, (Object) new String[0]);
        } catch (InvocationTargetException error) {
            finish("failed", String.valueOf(error.getCause()));
        } catch (ReflectiveOperationException error) {
            finish("broken", String.valueOf(error));
        }
        finish("passed", "");
    }

    public static Object call(Object[] arguments) {
        return ask(arguments, arguments);
    }

    /** The least number that no object of the program has yet; a new one has this or a greater one. */
    static int freshNumber() {
        return STAND_INS.fresh;
    }

    /** The answer to `message`; what was done to `arguments` is done here too. */
    static Object ask(Object[] message, Object[] arguments) {
        Object answer = null;
        try {
            WIRE.send(message);
        } catch (UnsupportedOperationException error) {
            finish("broken", error.getMessage());
        } catch (IOException error) {
            finish("gone", String.valueOf(error));
        }
        try {
            answer = WIRE.receive();
        } catch (EOFException error) {
            finish("gone", "the program ended before it answered");
        } catch (IOException error) {
            finish("gone", String.valueOf(error));
        } catch (RuntimeException | StackOverflowError error) {
            finish("failed", "the program's answer cannot be read: " + error);
        }
        if (!(answer instanceof Object[] reply) || reply.length < 2 || !(reply[0] instanceof String)) {
            finish("failed", "the program's answer is malformed");
            return null;
        }
        if (reply[0].equals("threw") && reply.length == 3) {
            Tests.<RuntimeException>raise(thrown(String.valueOf(reply[2]), reply[1] == null ? null : reply[1].toString()));
        }
        if (!reply[0].equals("ok")) {
            finish(reply[0].equals("memory") ? "memory" : "failed", String.valueOf(reply[1]));
        }
        if (reply.length == 3 && reply[2] instanceof Object[] after && after.length == arguments.length) {
            for (int i = 0; i < after.length; i++) {
                writeBack(arguments[i], after[i]);
            }
        }
        return reply[1];
    }

    /** An exception of the JDK or of the task, as the program threw it. */
    private static Throwable thrown(String type, String message) {
        try {
            if (type.matches("java\\.(lang|util|io|math|time)\\.[A-Za-z]+|[A-Za-z$]+")) {
                Class<?> known = Class.forName(type, false, Tests.class.getClassLoader());
                if (Exception.class.isAssignableFrom(known)) {
                    return (Throwable) made(known, message);
                }
            }
        } catch (ReflectiveOperationException error) {
            return new RuntimeException(type + ": " + message);
        }
        return new RuntimeException(type + ": " + message);
    }

    private static Object made(Class<?> type, String message) throws ReflectiveOperationException {
        for (Class<?>[] parameters : new Class<?>[][] {{String.class}, {}}) {
            try {
                var constructor = type.getDeclaredConstructor(parameters);
                constructor.setAccessible(true);
                return parameters.length == 0 ? constructor.newInstance() : constructor.newInstance(message);
            } catch (NoSuchMethodException error) {
                continue;
            }
        }
        throw new NoSuchMethodException(type.getName());
    }

    @SuppressWarnings("unchecked")
    private static <E extends Throwable> void raise(Throwable error) throws E {
        throw (E) error;
    }

    /** What the candidate did to a mutable argument is done to the caller's. */
    @SuppressWarnings("unchecked")
    private static void writeBack(Object mine, Object theirs) {
        if (mine == null || theirs == null || mine.equals(theirs)) {
            return;
        }
        if (mine.getClass().isArray() && mine.getClass() == theirs.getClass() && Array.getLength(mine) == Array.getLength(theirs)) {
            System.arraycopy(theirs, 0, mine, 0, Array.getLength(mine));
        } else if (mine instanceof List<?> list && theirs instanceof List<?> other && list.size() == other.size()) {
            for (int i = 0; i < other.size(); i++) {
                ((List<Object>) mine).set(i, other.get(i));
            }
        } else if (mine instanceof Collection<?> && theirs instanceof Collection<?> other) {
            ((Collection<Object>) mine).clear();
            ((Collection<Object>) mine).addAll(other);
        } else if (mine instanceof Map<?, ?> && theirs instanceof Map<?, ?> other) {
            ((Map<Object, Object>) mine).clear();
            ((Map<Object, Object>) mine).putAll(other);
        }
    }

    /** Objects of the program, by a class of the task that extends Remote. */
    private static final class StandIns implements Wire.References {
        private final Map<Integer, Object> known = new HashMap<>();
        private int fresh = 0;

        @Override
        public int number(Object value) {
            if (value instanceof Remote remote) {
                return remote.number;
            }
            throw new UnsupportedOperationException("a " + value.getClass().getName() + " cannot cross between the tests and the program");
        }

        @Override
        public Object object(int number, String[] types) {
            if (number < 0 || number == Integer.MAX_VALUE) {
                throw new IllegalArgumentException("no object has the number " + number);
            }
            fresh = Math.max(fresh, number + 1);
            return known.computeIfAbsent(number, fresh -> standIn(fresh, types));
        }

        private static Object standIn(int number, String[] types) {
            for (String type : types) {
                try {
                    Class<?> found = type.matches("[A-Za-z0-9_$]+") ? Class.forName(type) : Object.class;
                    if (Remote.class.isAssignableFrom(found)) {
                        var constructor = found.getDeclaredConstructor(Remote.Handle.class);
                        constructor.setAccessible(true);
                        return constructor.newInstance(new Remote.Handle(number));
                    }
                } catch (ReflectiveOperationException error) {
                    continue;
                }
            }
            throw new IllegalArgumentException("no class of the task is " + String.join(", ", types));
        }
    }

    private static void finish(String outcome, String detail) {
        String plain = detail.replaceAll("[^ !#-\\[\\]-~]", " ");
        say("[\"" + outcome + "\", \"" + plain.substring(0, Math.min(500, plain.length())) + "\"]");
        Runtime.getRuntime().halt(0);
    }

    private static void say(String text) {
        ERR.println("\n" + System.getenv("NONCE") + " " + text);
    }
}
