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
        default:
            return whole(value) ? ["value", value] : refer(value);
    }
}

// What crosses as it is: what is no object, and dates, patterns and plain errors.
function whole(value) {
    return typeof value !== "object" || value === null || [Date, RegExp, Error].some((type) => Object.getPrototypeOf(value) === type.prototype);
}

// `resolve(kind, ...rest)` reads a reference. A program may send what `encode` never writes: that is refused, as it could not be sent back.
function decode([kind, ...rest], resolve) {
    const each = (part) => decode(part, resolve);
    switch (kind) {
        case "value":
            if (!whole(rest[0])) {
                throw new TypeError(`a ${rest[0].constructor && rest[0].constructor.name} cannot cross`);
            }
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
        Object.defineProperties(mine, Object.getOwnPropertyDescriptors(theirs)); // Object.assign would let "__proto__" change its class
    }
}

module.exports = { encode, decode, writeBack };
