// Runs in the tests' sandbox: the program's module and its objects, each a proxy that asks the program's process.
"use strict";
const path = require("path");
const wire = require(path.join(__dirname, "wire.js"));
const { encode, decode, writeBack } = require(path.join(__dirname, "values.js"));

class Foreign {} // no plain data: encode() asks for a reference
const BUILT_IN = { Error, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };

// `finish(outcome, detail)` ends the process; `answer()` waits for the program's next message.
module.exports = function importProgram(reference, finish, answer) {
    const proxies = []; // by the number that the program gave the object
    const numbers = new Map(); // of proxies, and of errors that the program threw
    const callbacks = [];

    function refer(value) {
        if (numbers.has(value)) {
            return ["yours", numbers.get(value)];
        }
        if (typeof value !== "function") {
            throw new TypeError(`an object of ${value.constructor && value.constructor.name} cannot cross to the program`);
        }
        if (!callbacks.includes(value)) {
            callbacks.push(value);
        }
        return ["mine", callbacks.indexOf(value)];
    }

    function resolve(kind, number, callable) {
        if (kind === "yours" && Number.isInteger(number) && number in callbacks) {
            return callbacks[number];
        }
        if (kind !== "mine" || !Number.isInteger(number) || number < 0 || number >= 2 ** 31) {
            throw new Error("no such reference");
        }
        proxies[number] ??= proxyOf(number, callable);
        return proxies[number];
    }

    // A RangeError is an overflown stack: the program made a value so deep.
    function unsent(error) {
        return finish(error.code === "EPIPE" ? "gone" : error instanceof RangeError ? "failed" : "broken", error.message);
    }

    function put(value) {
        try {
            return encode(value, refer, numbers);
        } catch (error) {
            return unsent(error);
        }
    }

    function take(message) {
        try {
            return decode(message, resolve);
        } catch (error) {
            return finish("failed", `the program's answer cannot be read: ${error.message}`);
        }
    }

    function ask(action, of, ...args) {
        try {
            wire.send({ action, of, args: args.map(put) });
        } catch (error) {
            unsent(error);
        }
        for (;;) {
            const reply = answer();
            if ("call" in reply) {
                wire.send(called(reply));
            } else if (reply.error) {
                throw errorOf(reply.error);
            } else {
                (Array.isArray(reply.after) ? reply.after : []).forEach((after, place) => writeBack(args[place], take(after)));
                return take(reply.ok);
            }
        }
    }

    // The program may call the functions that it was given, and do nothing else with them.
    function called({ call, args }) {
        const given = Array.isArray(args) ? args.map(take) : [];
        try {
            return { ok: put(callbacks[Number.isInteger(call) ? call : -1](...given)) };
        } catch (error) {
            return { error: String(error && error.message) };
        }
    }

    function errorOf([name, text, reference]) {
        const error = new (Object.hasOwn(BUILT_IN, name) ? BUILT_IN[name] : Error)(String(text));
        error.name = String(name);
        if (Array.isArray(reference)) {
            numbers.set(error, reference[1]);
        }
        return error;
    }

    function proxyOf(number, callable) {
        const SYMBOLS = {
            [Symbol.toPrimitive]: (hint) => ask("primitive", number, hint),
            [Symbol.hasInstance]: (value) => typeof value === "object" && value !== null && numbers.has(value) && ask("isOf", number, value) === true,
            [Symbol.iterator]: () => ask("items", number)[Symbol.iterator](),
        };
        const proxy = new Proxy(callable ? function () {} : new Foreign(), {
            get: (_, name) => (typeof name === "symbol" ? SYMBOLS[name] : ask("get", number, name)),
            set: (_, name, value) => (ask("set", number, name, value), true),
            has: (_, name) => ask("has", number, name) === true,
            apply: (_, self, args) => ask("call", number, self, ...args),
            construct: (_, args) => made(proxies.length, ask("new", number, ...args)),
        });
        numbers.set(proxy, number);
        return proxy;
    }

    // A new object: a primitive could not be sent back, and one that had a number below `fresh` would be the same as another.
    function made(fresh, value) {
        const isNew = Object(value) === value && !(numbers.get(value) < fresh);
        return isNew ? value : finish("failed", "the program's constructor made no new object");
    }

    // For matchers: whether it is an object of the program, and what that holds as plain data, one level deep.
    globalThis.isOfProgram = (value) => numbers.has(value) && !(value instanceof Error);
    globalThis.plainView = (value) => (isOfProgram(value) ? Object.fromEntries(ask("entries", numbers.get(value))) : value);
    return take(reference);
};
