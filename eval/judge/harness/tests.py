"""Runs in the tests' sandbox, where no candidate code is: the names that the candidate defines are calls to its process."""

import builtins
import contextlib
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import objects
import wire


def say(text):
    os.write(2, f"\n{os.environ['NONCE']} {text}\n".encode())


def finish(outcome, detail=""):
    say(json.dumps([outcome, str(detail)[:500]]))
    os._exit(0)


def answer(shapes=({"ok"}, {"error"})):
    """The program's next message, whose keys must be one of `shapes`."""
    try:
        reply = channel.receive()
    except (EOFError, OSError):
        finish("gone", "the program ended before it answered")
    except (ValueError, RecursionError) as error:
        finish("failed", f"the program's answer cannot be read: {error}")
    if not isinstance(reply, dict) or set(reply) not in shapes:
        finish("failed", "the program's answer is malformed")
    return reply


def call(*arguments):
    try:
        channel.send(wire.encode(list(arguments)))
    except TypeError as error:
        finish("broken", error)
    except BrokenPipeError:
        finish("gone", "the program ended before it was called")
    reply = answer()
    if "error" in reply:
        raise raised(*reply["error"])
    try:
        result, after, same = map(wire.decode, reply["ok"])
        for mine, theirs in zip(arguments, after, strict=True):
            wire.write_back(mine, theirs)
        for place in same[:1]:  # a function that returns the list that it was given
            result = arguments[place]
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        finish("failed", f"the program's answer cannot be read: {error}")
    return result


def raised(kinds, text):
    """What the program raised, as the nearest of Python's own errors among its ancestors `kinds` that takes a text alone."""
    if "MemoryError" in kinds:
        finish("memory", text)
    for kind in kinds:
        known = getattr(builtins, str(kind), None)
        if isinstance(known, type) and issubclass(known, Exception):
            with contextlib.suppress(TypeError):  # UnicodeDecodeError takes five arguments
                return known(str(text))
    return RuntimeError(f"{kinds[0]}: {text}")


channel = wire.Channel()
say("")  # that the tests got going
loaded = answer()
if "error" in loaded:
    kinds, text = loaded["error"]
    outcome = "compile error" if "SyntaxError" in kinds else "memory" if "MemoryError" in kinds else "failed"
    finish(outcome, f"{kinds[0]}: {text}")
with open("tests.json", encoding="utf-8") as file:
    plan = json.load(file)
namespace: dict[str, object] = {"__name__": "__main__"}
try:
    exec(compile(plan["trusted"], "trusted.py", "exec"), namespace)
    if plan["entry"]:
        namespace[plan["entry"]] = call
    else:
        namespace["imported_program"] = objects.Program(channel, answer, finish).module(loaded["ok"])
    code = compile(plan["tests"], "tests.py", "exec")
except Exception as error:
    finish("broken", f"{type(error).__name__}: {error}")
try:
    exec(code, namespace)
except BaseException as error:
    finish("failed", f"{type(error).__name__}: {error}")
finish("passed")
