// Runs in the candidate's sandbox: loads program.js, then answers calls. Nothing here is trusted, and nothing here knows what is right.
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");
const wire = require(path.join(__dirname, "wire.js"));

function attempt(action) {
    try {
        const reply = { ok: action() };
        require("v8").serialize(reply);
        return reply;
    } catch (error) {
        return { error: [String(error && error.name), String(error && error.message).slice(0, 500)] };
    }
}

globalThis.require = require;
globalThis.module = { exports: {} };
globalThis.exports = globalThis.module.exports;
wire.send(attempt(() => void vm.runInThisContext(fs.readFileSync("program.js", "utf8"), { filename: "program.js" })));
for (;;) {
    let request;
    try {
        request = wire.receive();
    } catch {
        process.exit(0);
    }
    wire.send(
        attempt(() => {
            const result = vm.runInThisContext(process.argv[2])(...request);
            return [result, request, request.indexOf(result)];
        }),
    );
}
