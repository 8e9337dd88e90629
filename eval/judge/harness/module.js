// Runs in the candidate's sandbox: imports program.mjs, then does with its objects what it is asked. Nothing here is trusted, and nothing
// here knows what is right.
"use strict";
const path = require("path");
const { pathToFileURL } = require("url");
const wire = require(path.join(__dirname, "wire.js"));
const { encode, decode } = require(path.join(__dirname, "values.js"));

const objects = []; // what the tests hold references to
const numbers = new Map(); // and the way back
const callbacks = new Map(); // functions of the tests, and their numbers

function refer(value) {
    if (callbacks.has(value)) {
        return ["yours", callbacks.get(value)];
    }
    if (!numbers.has(value)) {
        numbers.set(value, objects.push(value) - 1);
    }
    return ["mine", numbers.get(value), typeof value === "function"];
}

function resolve(kind, number) {
    if (kind === "yours") {
        return objects[number];
    }
    const callback = (...args) => {
        wire.send({ call: number, args: args.map(put) });
        return serve();
    };
    callbacks.set(callback, number);
    return callback;
}

const put = (value) => encode(value, refer, callbacks);
const take = (message) => decode(message, resolve);

const ACTIONS = {
    get: (target, name) => target[name],
    set: (target, name, value) => void (target[name] = value),
    has: (target, name) => name in target,
    call: (target, self, ...args) => target.apply(self, args),
    new: (target, ...args) => Reflect.construct(target, args),
    entries: (target) => Object.entries(target),
    items: (target) => [...target],
    isOf: (target, value) => value instanceof target,
    primitive: (target, hint) => (hint === "string" || typeof target.valueOf() === "object" ? String(target) : target.valueOf()),
};

function attempt(action) {
    try {
        const reply = action();
        require("v8").serialize(reply);
        return reply;
    } catch (error) {
        const name = String(error && error.name);
        return { error: [name, String(error instanceof Error ? error.message : error).slice(0, 500), refer(Object(error))] };
    }
}

// Answers requests until a reply comes, which ends a callback.
function serve() {
    for (;;) {
        const message = wire.receive();
        if ("ok" in message) {
            return take(message.ok);
        }
        if ("error" in message) {
            throw new Error(message.error);
        }
        wire.send(
            attempt(() => {
                const args = message.args.map(take);
                const result = ACTIONS[message.action](objects[message.of], ...args);
                return { ok: put(result), after: args.map(put) };
            }),
        );
    }
}

globalThis.module = { exports: {} }; // some programs export as CommonJS does
import(pathToFileURL("program.mjs"))
    .then(
        (program) => wire.send({ ok: refer(Object.keys(program).length ? program : { default: globalThis.module.exports, ...globalThis.module.exports }) }),
        (error) => wire.send({ error: [String(error && error.name), String(error && error.message).slice(0, 500)] }),
    )
    .then(serve)
    .catch(() => process.exit(0));
