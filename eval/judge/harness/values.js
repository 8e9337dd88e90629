// Values between a module and its tests: plain data is copied; functions and objects of classes stay where they are and cross as references.
"use strict";

// `refer(value)` writes a reference, an array that begins with its own kind; `known` has what must cross as one though it looks plain.
function encode(value, refer, known, within = []) {
    const each = (part) => encode(part, refer, known, [...within, value]);
    if (typeof value === "function" || known.has(value) || within.includes(value)) {
        return refer(value);
    }
    if (typeof value !== "object" || value === null) {
        return ["value", value];
    }
    if (Array.isArray(value)) {
        return ["array", Array.from(value, each)];
    }
    switch (Object.getPrototypeOf(value)) {
        case null:
        case Object.prototype:
            return ["object", Object.entries(value).map(([key, part]) => [key, each(part)])];
        case Map.prototype:
            return ["map", Array.from(value, (pair) => pair.map(each))];
        case Set.prototype:
            return ["set", Array.from(value, each)];
        case Date.prototype:
        case RegExp.prototype:
        case Error.prototype:
            return ["value", value];
        default:
            return refer(value);
    }
}

// `resolve(kind, ...rest)` reads a reference.
function decode([kind, ...rest], resolve) {
    const each = (part) => decode(part, resolve);
    switch (kind) {
        case "value":
            return rest[0];
        case "array":
            return rest[0].map(each);
        case "object":
            return Object.fromEntries(rest[0].map(([key, part]) => [String(key), each(part)]));
        case "map":
            return new Map(rest[0].map((pair) => pair.map(each)));
        case "set":
            return new Set(rest[0].map(each));
        default:
            return resolve(kind, ...rest);
    }
}

// What the other side did to a mutable argument is done to the caller's.
function writeBack(mine, theirs) {
    if (Array.isArray(mine) && Array.isArray(theirs)) {
        mine.splice(0, mine.length, ...theirs);
    } else if (mine && theirs && typeof theirs === "object" && Object.getPrototypeOf(mine) === Object.prototype) {
        Object.keys(mine).forEach((key) => delete mine[key]);
        Object.assign(mine, theirs);
    }
}

module.exports = { encode, decode, writeBack };
