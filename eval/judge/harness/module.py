"""Runs in the candidate's sandbox: loads program.py, then does with its objects what it is asked. Nothing here is trusted."""

import builtins
import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire

channel = wire.Channel()
module = sys.modules["program"] = types.ModuleType("program")
objects: list = []  # what the tests hold references to
numbers: dict = {}  # and the way back, by id: they stay alive
callbacks: dict = {}  # calls of the tests' functions, by their number


def call(function, *arguments, **named):
    return function(*arguments, **named)


def refer(value):
    """Of plain data None. A number or text of the program's own class is plain too; a list or tuple of its own is an object."""
    if isinstance(value, wire.SCALAR) or (isinstance(value, wire.PLAIN) and type(value).__module__ != "program"):
        return None
    for number, callback in callbacks.items():
        if value is callback:
            return {"yours": number}
    if id(value) not in numbers:
        numbers[id(value)] = len(objects)
        objects.append(value)
    reference = {"mine": numbers[id(value)]}
    if isinstance(value, type) and issubclass(value, BaseException):
        reference["error"] = [value.__name__, None if value.__module__ == "builtins" else refer(value.__base__)]
    return reference


def resolve(reference):
    if "yours" in reference:
        return objects[reference["yours"]]
    number = reference["mine"]

    def callback(*arguments):
        channel.send({"call": number, "arguments": put(arguments)})
        return serve()

    return callbacks.setdefault(number, callback)


def put(value):
    return wire.encode(value, refer)


def do(request):
    """The result, and the arguments as they are now."""
    arguments, named = (wire.decode(request[part], resolve) for part in ("arguments", "named"))
    action = call if request["do"] == "call" else getattr(builtins, request["do"])
    return put([action(*arguments, **named), arguments])


def serve():
    """Answers requests until a reply comes, which ends a callback."""
    while True:
        message = channel.receive()
        if "ok" in message:
            return wire.decode(message["ok"], resolve)
        if "error" in message:
            raise RuntimeError(message["error"])
        try:
            reply = {"ok": do(message)}
        except BaseException as error:
            reply = {"error": [refer(type(error)), put([part if isinstance(part, wire.PLAIN) else str(part) for part in error.args])]}
        channel.send(reply)


try:
    with open("program.py", encoding="utf-8") as file:
        exec(compile(file.read(), "program.py", "exec"), vars(module))
    loaded = {"ok": refer(module)}
except BaseException as error:
    loaded = {"error": wire.described(error)}
channel.send(loaded)
try:
    serve()
except EOFError:
    os._exit(0)
