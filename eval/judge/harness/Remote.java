/** Base of the stand-ins for a program's classes, in the tests' sandbox: the object itself lives in the program's process. */
public abstract class Remote {
    /** The number that the program's process gave an object. */
    public record Handle(int number) {}

    final int number;

    protected Remote(Handle handle) {
        number = handle.number();
    }

    /** A new object; `parameters` are the constructor's simple type names joined by commas. */
    public static Handle create(String type, String parameters, Object... arguments) {
        if (!(Tests.ask(new Object[] {"new", null, type, "", parameters, arguments}, arguments) instanceof Remote made)) {
            throw new ClassCastException("the program made no " + type);
        }
        return new Handle(made.number);
    }

    /** The result of a method; `target` is null where it is static. */
    public static Object invoke(Remote target, String type, String method, String parameters, Object... arguments) {
        return Tests.ask(new Object[] {"call", target, type, method, parameters, arguments}, arguments);
    }

    /** Objects of the program are equal if it says so; nothing else is equal to them. */
    @Override
    public boolean equals(Object other) {
        return other instanceof Remote theirs && theirs.getClass() == getClass()
                && (theirs.number == number || Boolean.TRUE.equals(invoke(this, "", "equals", "Object", other)));
    }

    @Override
    public int hashCode() {
        return (Integer) invoke(this, "", "hashCode", "");
    }

    @Override
    public String toString() {
        return (String) invoke(this, "", "toString", "");
    }
}
