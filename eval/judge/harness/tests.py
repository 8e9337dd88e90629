"""Runs in the tests' sandbox, where no candidate code is: the names that the candidate defines are calls to its process."""

import builtins
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
        kind, text = map(str, reply["error"])
        if kind == "MemoryError":
            finish("memory", text)
        known = getattr(builtins, kind, None)
        raise known(text) if isinstance(known, type) and issubclass(known, Exception) else RuntimeError(f"{kind}: {text}")
    try:
        result, after, same = map(wire.decode, reply["ok"])
        for mine, theirs in zip(arguments, after, strict=True):
            wire.write_back(mine, theirs)
        for place in same[:1]:  # a function that returns the list that it was given
            result = arguments[place]
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        finish("failed", f"the program's answer cannot be read: {error}")
    return result


channel = wire.Channel()
say("")  # that the tests got going
loaded = answer()
if "error" in loaded:
    kind, text = map(str, loaded["error"])
    compiling = dict.fromkeys(("SyntaxError", "IndentationError", "TabError"), "compile error")
    finish({**compiling, "MemoryError": "memory"}.get(kind, "failed"), f"{kind}: {text}")
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
