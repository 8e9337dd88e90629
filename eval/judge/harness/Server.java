import java.lang.reflect.Constructor;
import java.lang.reflect.Executable;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/** Runs in the candidate's sandbox: makes objects of the program and calls their methods. Nothing here is trusted, and nothing here knows what is right. */
final class Server extends AnswerLoop implements Wire.References {
    private final List<Object> objects = new ArrayList<>();
    private final Map<Object, Integer> numbers = new IdentityHashMap<>();

    @Override
    public int number(Object value) {
        return numbers.computeIfAbsent(value, fresh -> {
            objects.add(fresh);
            return objects.size() - 1;
        });
    }

    @Override
    public Object object(int number, String[] types) {
        return objects.get(number);
    }

    public static void main(String[] args) throws Exception {
        Server server = new Server();
        server.run(new Wire(server));
    }

    @Override
    Object[] answer(Object[] request) throws ReflectiveOperationException {
        Object[] arguments = (Object[]) request[5];
        return new Object[] {"ok", result(request, arguments), arguments};
    }

    @Override
    Object[] threw(Throwable error) {
        return new Object[] {"threw", error.getMessage(), error.getClass().getName()};
    }

    /** `request` is: "new" or "call", the object, its class, the method, the simple names of the parameters' types, the arguments. */
    private static Object result(Object[] request, Object[] arguments) throws ReflectiveOperationException {
        Object target = request[1];
        Class<?> type = target == null ? Class.forName((String) request[2]) : target.getClass();
        if (request[0].equals("new")) {
            Constructor<?> made = (Constructor<?>) find(type.getDeclaredConstructors(), type.getName(), (String) request[4], arguments.length);
            return made.newInstance(arguments);
        }
        for (Class<?> owner = type; owner != null; owner = owner.getSuperclass()) {
            if (find(owner.getDeclaredMethods(), (String) request[3], (String) request[4], arguments.length)
                    instanceof java.lang.reflect.Method method) {
                return method.invoke(target, arguments);
            }
        }
        throw new NoSuchMethodException(type.getName() + "." + request[3] + "(" + request[4] + ")");
    }

    /** The one with these parameters, else the only one of this name with as many; null if there is none. */
    private static Executable find(Executable[] all, String name, String parameters, int count) {
        List<Executable> found = Arrays.stream(all).filter(one -> one.getName().equals(name) && !one.isSynthetic()).toList();
        List<Executable> same = found.stream()
                .filter(one -> Arrays.stream(one.getParameterTypes()).map(Class::getSimpleName).collect(Collectors.joining(",")).equals(parameters))
                .toList();
        if (same.isEmpty()) {
            same = found.stream().filter(one -> one.getParameterCount() == count).toList();
        }
        if (same.size() != 1) {
            return null;
        }
        same.get(0).setAccessible(true);
        return same.get(0);
    }
}
