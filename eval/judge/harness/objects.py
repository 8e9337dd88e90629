"""Runs in the tests' sandbox: the program's module and its objects, each a stand-in that asks the program's process."""

import builtins

import wire


class StandIn:
    """An object of the program. It is equal to itself alone, whatever the program says."""

    def __init__(self, ask, number):
        vars(self).update(_ask=ask, _number=number)

    def __getattr__(self, name):
        if name.startswith("__"):  # what Python and unittest look for
            raise AttributeError(name)
        return self._ask("getattr", self, name)

    def __setattr__(self, name, value):
        self._ask("setattr", self, name, value)

    def __call__(self, *arguments, **named):
        return self._ask("call", self, *arguments, **named)

    def __iter__(self):
        return self._ask("iter", self)

    def __next__(self):
        return self._ask("next", self)

    def __len__(self):
        return self._ask("len", self)

    def __bool__(self):
        return self._ask("bool", self)

    def __str__(self):
        return self._ask("str", self)


class Program:
    """The stand-ins by the number that the program gave, and the functions of the tests that the program may call."""

    def __init__(self, channel, answer, finish):
        self.channel, self.answer, self.finish = channel, answer, finish
        self.known, self.numbers, self.functions = {}, {}, []

    def module(self, reference):
        """What the tests import."""
        try:
            return self.resolve(reference)
        except Exception as error:  # the program chose what it sent: whatever is wrong with that is a failure of its own
            self.unreadable(error)

    def unreadable(self, error):
        self.finish("failed", f"the program's answer cannot be read: {type(error).__name__}: {error}")

    def ask(self, action, *arguments, **named):
        """What the program's process says when it does that."""
        try:
            self.channel.send({"do": action, "arguments": self.encode(list(arguments)), "named": self.encode(named)})
        except TypeError as error:
            self.finish("broken", error)
        except BrokenPipeError:
            self.finish("gone", "the program ended before it was called")
        while "call" in (reply := self.answer(({"ok"}, {"error"}, {"call", "arguments"}))):
            self.channel.send(self.called(reply))
        try:
            if "ok" in reply:
                result, after = self.decode(reply["ok"])
                for mine, theirs in zip(arguments, after, strict=True):
                    wire.write_back(mine, theirs)
                return result
            kind, about = reply["error"]
            raised = self.error(action, self.resolve(kind), self.decode(about))
        except Exception as error:  # as above
            self.unreadable(error)
        raise raised

    def error(self, action, kind, arguments):
        if kind is MemoryError:
            self.finish("memory", arguments)
        if issubclass(kind, (StopIteration, StopAsyncIteration)) and action != "next":
            return RuntimeError(f"the program raised {kind.__name__}")  # it would end a loop of the tests
        return kind(*arguments)

    def called(self, reply):
        """The program may call the functions that it was given, and do nothing else with them."""
        try:
            return {"ok": self.encode(self.functions[int(reply["call"])](*self.decode(reply["arguments"])))}
        except Exception as error:  # the program's to see: its call was wrong, or the function raised
            return {"error": str(error)}

    def encode(self, value):
        return wire.encode(value, self.refer)

    def decode(self, value):
        return wire.decode(value, self.resolve)

    def refer(self, value):
        if isinstance(value, StandIn):
            return {"yours": value._number}
        if isinstance(value, wire.PLAIN):
            return None
        if value in self.numbers:
            return {"yours": self.numbers[value]}
        if not callable(value):
            raise TypeError(f"a value of type {type(value).__name__} cannot cross between the tests and the program")
        if value not in self.functions:
            self.functions.append(value)
        return {"mine": self.functions.index(value)}

    def resolve(self, reference):
        if "yours" in reference:
            return self.functions[int(reference["yours"])]
        number = int(reference["mine"])
        if number not in self.known:
            self.known[number] = self.error_class(number, *reference["error"]) if "error" in reference else StandIn(self.ask, number)
        return self.known[number]

    def error_class(self, number, name, base):
        """An exception class of the same name and ancestors; of Python's own, those that are errors."""
        if base is None:
            found = getattr(builtins, str(name), None)
            return found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError
        made = type(str(name), (self.resolve(base),), {})
        self.numbers[made] = number
        return made
