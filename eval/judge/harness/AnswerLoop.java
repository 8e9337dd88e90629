import java.io.EOFException;
import java.io.IOException;
import java.lang.reflect.InvocationTargetException;

/** The candidate's side of the channel: replies to messages until the tests are gone. */
abstract class AnswerLoop {
    /** The reply: "ok", the result, and the arguments as they are now. InvocationTargetException if the program threw. */
    abstract Object[] answer(Object[] message) throws ReflectiveOperationException;

    /** The reply where the program threw `error`. */
    abstract Object[] threw(Throwable error);

    final void run(Wire wire) throws IOException {
        while (true) {
            Object[] message;
            try {
                message = (Object[]) wire.receive();
            } catch (EOFException error) {
                System.exit(0);
                return;
            }
            try {
                wire.send(reply(message));
            } catch (IllegalArgumentException | UnsupportedOperationException error) {
                wire.send(new Object[] {"error", error.getMessage()});
            }
        }
    }

    private Object[] reply(Object[] message) {
        try {
            return answer(message);
        } catch (Throwable error) {
            Throwable cause = error instanceof InvocationTargetException ? error.getCause() : error; // initialising a class throws Errors as they are
            if (cause instanceof OutOfMemoryError) {
                return new Object[] {"memory", String.valueOf(cause)};
            }
            return cause == error ? new Object[] {"error", String.valueOf(error)} : threw(cause);
        }
    }
}
