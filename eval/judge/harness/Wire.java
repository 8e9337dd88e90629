import java.io.*;
import java.lang.reflect.Array;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.util.*;
import java.util.stream.Stream;

/** Java values as bytes, by their run-time types: the JDK's plain data only, never java.io serialization. */
final class Wire {
    static final int LIMIT = 16 << 20; // bytes of one message
    private static final List<Class<?>> PRIMITIVES =
            List.of(int.class, long.class, double.class, float.class, boolean.class, char.class, byte.class, short.class);

    /** Objects that stay in the program's process, by number. */
    interface References {
        /** UnsupportedOperationException for an object that cannot cross. */
        int number(Object value);

        /** `types` are the names of the object's class and of what it extends and implements. */
        Object object(int number, String[] types);
    }

    final References references;
    final DataInputStream in;
    final DataOutputStream out;

    /** Messages of 4 bytes of length and the value, on standard input and output, which the program itself then loses. */
    Wire(References references) {
        this.references = references;
        in = new DataInputStream(new BufferedInputStream(new FileInputStream(FileDescriptor.in)));
        out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(FileDescriptor.out)));
        System.setIn(InputStream.nullInputStream());
        System.setOut(new PrintStream(OutputStream.nullOutputStream()));
    }

    void send(Object value) throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        put(new DataOutputStream(bytes), value);
        if (bytes.size() > LIMIT) {
            throw new IllegalArgumentException("a message of " + bytes.size() + " bytes is over the limit of " + LIMIT);
        }
        out.writeInt(bytes.size());
        bytes.writeTo(out);
        out.flush();
    }

    Object receive() throws IOException {
        int size = in.readInt();
        if (size < 0 || size > LIMIT) {
            throw new IllegalArgumentException("a message of " + size + " bytes is over the limit of " + LIMIT);
        }
        byte[] bytes = new byte[size];
        in.readFully(bytes);
        return get(new DataInputStream(new ByteArrayInputStream(bytes)));
    }

    private void put(DataOutputStream out, Object value) throws IOException {
        if (value == null) {
            out.writeByte('0');
        } else if (value instanceof Boolean b) {
            out.writeByte('Z');
            out.writeBoolean(b);
        } else if (value instanceof Integer i) {
            out.writeByte('I');
            out.writeInt(i);
        } else if (value instanceof Long l) {
            out.writeByte('J');
            out.writeLong(l);
        } else if (value instanceof Double d) {
            out.writeByte('D');
            out.writeDouble(d);
        } else if (value instanceof Float f) {
            out.writeByte('F');
            out.writeFloat(f);
        } else if (value instanceof Character c) {
            out.writeByte('C');
            out.writeChar(c);
        } else if (value instanceof Byte b) {
            out.writeByte('B');
            out.writeByte(b);
        } else if (value instanceof Short s) {
            out.writeByte('H');
            out.writeShort(s);
        } else if (value instanceof String s) {
            out.writeByte('S');
            text(out, s);
        } else if (value instanceof BigInteger || value instanceof BigDecimal) {
            out.writeByte(value instanceof BigInteger ? 'G' : 'P');
            text(out, value.toString());
        } else if (value instanceof Optional<?> o) {
            out.writeByte('O');
            put(out, o.orElse(null));
        } else if (value instanceof Map<?, ?> map) {
            out.writeByte('M');
            out.writeInt(map.size());
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                put(out, entry.getKey());
                put(out, entry.getValue());
            }
        } else if (value instanceof List<?> || value instanceof Set<?>) {
            out.writeByte(value instanceof Set ? 'E' : value.getClass().getName().equals("java.util.Arrays$ArrayList") ? 'A' : 'L');
            out.writeInt(((Collection<?>) value).size());
            for (Object part : (Collection<?>) value) {
                put(out, part);
            }
        } else if (value.getClass().isArray()) {
            out.writeByte('[');
            text(out, value.getClass().getComponentType().getName());
            out.writeInt(Array.getLength(value));
            for (int i = 0; i < Array.getLength(value); i++) {
                put(out, Array.get(value, i));
            }
        } else if (value.getClass().getName().startsWith("org.javatuples.")) {
            out.writeByte('T');
            text(out, value.getClass().getName());
            List<Object> parts = new ArrayList<>();
            ((Iterable<?>) value).forEach(parts::add);
            put(out, parts);
        } else if (value instanceof LocalDate || value instanceof LocalDateTime) {
            out.writeByte(value instanceof LocalDate ? 'd' : 't');
            text(out, value.toString());
        } else if (value instanceof Enum<?> constant) {
            out.writeByte('N');
            text(out, constant.getDeclaringClass().getName());
            text(out, constant.name());
        } else {
            out.writeByte('R');
            out.writeInt(references.number(value));
            put(out, typesOf(value.getClass()).map(Class::getName).toArray(String[]::new));
        }
    }

    private static Stream<Class<?>> typesOf(Class<?> type) {
        return type == null ? Stream.of() : Stream.of(Stream.of(type), typesOf(type.getSuperclass()), Arrays.stream(type.getInterfaces())).flatMap(part -> part);
    }

    private Object get(DataInputStream in) throws IOException {
        char tag = (char) in.readByte();
        switch (tag) {
            case '0': return null;
            case 'Z': return in.readBoolean();
            case 'I': return in.readInt();
            case 'J': return in.readLong();
            case 'D': return in.readDouble();
            case 'F': return in.readFloat();
            case 'C': return in.readChar();
            case 'B': return in.readByte();
            case 'H': return in.readShort();
            case 'S': return text(in).intern(); // some tests compare strings by ==, which holds for equal literals in one process
            case 'G': return new BigInteger(text(in));
            case 'P': return new BigDecimal(text(in));
            case 'O': return Optional.ofNullable(get(in));
            case 'M': {
                Map<Object, Object> map = new LinkedHashMap<>();
                for (int left = count(in); left > 0; left--) {
                    Object key = get(in);
                    map.put(key, get(in));
                }
                return map;
            }
            case 'A':
            case 'L':
            case 'E': {
                Collection<Object> parts = tag == 'E' ? new LinkedHashSet<>() : new ArrayList<>();
                for (int left = count(in); left > 0; left--) {
                    parts.add(get(in));
                }
                return tag == 'A' ? Arrays.asList(parts.toArray()) : parts;
            }
            case '[': {
                Class<?> type = type(text(in));
                Object array = Array.newInstance(type, count(in));
                for (int i = 0; i < Array.getLength(array); i++) {
                    Array.set(array, i, get(in));
                }
                return array;
            }
            case 'T': {
                String name = text(in);
                Object[] parts = ((List<?>) get(in)).toArray();
                if (!name.matches("org\\.javatuples\\.[A-Z][a-z]+")) {
                    throw new IllegalArgumentException("no tuple is called " + name);
                }
                try {
                    return Class.forName(name).getMethod("fromArray", Object[].class).invoke(null, (Object) parts);
                } catch (ReflectiveOperationException error) {
                    throw new IllegalArgumentException(error);
                }
            }
            case 'd': return LocalDate.parse(text(in));
            case 't': return LocalDateTime.parse(text(in));
            case 'N': return constant(text(in), text(in));
            case 'R': return references.object(in.readInt(), (String[]) get(in));
            default: throw new IllegalArgumentException("unknown kind of value " + tag);
        }
    }

    private static Class<?> type(String name) {
        for (Class<?> primitive : PRIMITIVES) {
            if (primitive.getName().equals(name)) {
                return primitive;
            }
        }
        if (!name.matches("\\[+([ZIJDFCBS]|Ljava\\.(lang|util)\\.[A-Za-z]+;)|java\\.(lang|util)\\.[A-Za-z]+|[A-Za-z0-9_$]+")) {
            throw new IllegalArgumentException("no array may hold " + name);
        }
        try {
            return Class.forName(name, false, Wire.class.getClassLoader());
        } catch (ClassNotFoundException error) {
            throw new IllegalArgumentException(error);
        }
    }

    /** A constant of one of the task's own enums, or of the JDK's. */
    @SuppressWarnings({"unchecked", "rawtypes"})
    private static Object constant(String type, String name) {
        try {
            Class<?> found = type.matches("java\\.time\\.(DayOfWeek|Month)|[A-Za-z0-9_$]+") ? Class.forName(type) : Object.class;
            if (!found.isEnum()) {
                throw new IllegalArgumentException("no enum is called " + type);
            }
            return Enum.valueOf((Class<Enum>) found, name);
        } catch (ClassNotFoundException error) {
            throw new IllegalArgumentException(error);
        }
    }

    private static int count(DataInputStream in) throws IOException {
        int count = in.readInt();
        if (count < 0 || count > in.available()) {
            throw new IllegalArgumentException("a message claims " + count + " elements");
        }
        return count;
    }

    private static void text(DataOutputStream out, String text) throws IOException {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_16BE);
        out.writeInt(bytes.length);
        out.write(bytes);
    }

    private static String text(DataInputStream in) throws IOException {
        byte[] bytes = new byte[count(in)];
        in.readFully(bytes);
        return new String(bytes, StandardCharsets.UTF_16BE);
    }
}
