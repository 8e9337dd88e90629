// Runs in the tests' sandbox, where no candidate code is: the names that the candidate defines are calls to its process.
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");
const wire = require(path.join(__dirname, "wire.js"));
const { writeBack } = require(path.join(__dirname, "values.js"));

function say(text) {
    fs.writeSync(2, `\n${process.env.NONCE} ${text}\n`);
}

function finish(outcome, detail = "") {
    say(JSON.stringify([outcome, String(detail).slice(0, 500)]));
    process.reallyExit(0);
}

function answer() {
    let reply;
    try {
        reply = wire.receive();
    } catch (error) {
        finish(error.message === "end of file" ? "gone" : "failed", `the program's answer cannot be read: ${error.message}`);
    }
    if (typeof reply !== "object" || reply === null || !("ok" in reply || "call" in reply || Array.isArray(reply.error))) {
        finish("failed", "the program's answer is malformed");
    }
    if (reply.error && reply.error[1] === "Array buffer allocation failed") {
        finish("memory", reply.error[1]);
    }
    return reply;
}

function call(...args) {
    try {
        wire.send(args);
    } catch (error) {
        finish(error.code === "EPIPE" ? "gone" : error instanceof RangeError ? "failed" : "broken", error.message); // RangeError: too deep
    }
    const reply = answer();
    if (reply.error) {
        const error = new Error(String(reply.error[1]));
        error.name = String(reply.error[0]);
        throw error;
    }
    const [result, after, same] = Array.isArray(reply.ok) ? reply.ok : [];
    if (!Number.isInteger(same) || same < -1 || same >= args.length) {
        finish("failed", "the program's answer is malformed");
    }
    args.forEach((arg, place) => writeBack(arg, Array.isArray(after) ? after[place] : undefined));
    return same >= 0 ? args[same] : result; // a function that returns the array that it was given
}

say(""); // that the tests got going
const loaded = answer();
if (loaded.error) {
    finish(loaded.error[0] === "SyntaxError" ? "compile error" : "failed", loaded.error.join(": "));
}
const plan = JSON.parse(fs.readFileSync("tests.json", "utf8"));
globalThis.require = require;
if (plan.entry) {
    globalThis.callProgram = call;
} else {
    globalThis.importedProgram = require(path.join(__dirname, "objects.js"))(loaded.ok, finish, answer);
    Object.assign(globalThis, require(path.join(__dirname, "jest.js")));
}
// node's own console.assert prints and goes on, and the exit status stays 0.
console.assert = (condition, ...text) => {
    if (!condition) {
        throw new Error(["Assertion failed", ...text].join(" "));
    }
};
console.log = console.info = () => undefined;
let script;
try {
    script = new vm.Script([plan.trusted, plan.entry && `const ${plan.entry} = callProgram;`, plan.tests].join("\n"), { filename: "tests.js" });
} catch (error) {
    finish("broken", error);
}
try {
    script.runInThisContext();
} catch (error) {
    finish("failed", error);
}
finish("passed");
