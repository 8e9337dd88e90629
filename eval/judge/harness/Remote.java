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
        int fresh = Tests.freshNumber();
        if (!(Tests.ask(new Object[] {"new", null, type, "", parameters, arguments}, arguments) instanceof Remote made) || made.number < fresh) {
            throw new ClassCastException("the program made no new " + type);
        }
        return new Handle(made.number);
    }

    /** The result of a method; `target` is null where it is static. */
    public static Object invoke(Remote target, String type, String method, String parameters, Object... arguments) {
        return Tests.ask(new Object[] {"call", target, type, method, parameters, arguments}, arguments);
    }

    /** An object of the program is equal to itself alone, whatever the program says. */
    @Override
    public boolean equals(Object other) {
        return other instanceof Remote theirs && theirs.number == number;
    }

    @Override
    public int hashCode() {
        return number;
    }

    @Override
    public String toString() {
        return (String) invoke(this, "", "toString", "");
    }
}
