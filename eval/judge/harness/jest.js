// The part of Jest that task sets use. `xtest` runs: it marks what a learner has not come to yet.
"use strict";

const cases = [];
let scope = { names: [], before: [], after: [] };

function describe(name, body) {
    const outer = scope;
    scope = { names: [...outer.names, name], before: [], after: [], parent: outer };
    body();
    scope = outer;
}

function test(name, body) {
    cases.push({ name: [...scope.names, name].join(" "), body, scope });
}

const scopes = (inner) => (inner ? [...scopes(inner.parent), inner] : []);

function runTests() {
    if (cases.length === 0) {
        throw new Error("there are no tests");
    }
    for (const { name, body, scope: inner } of cases) {
        try {
            scopes(inner).forEach(({ before }) => before.forEach((hook) => hook()));
            body();
            scopes(inner).forEach(({ after }) => after.forEach((hook) => hook()));
        } catch (error) {
            throw new Error(`${name}: ${error && error.message}`);
        }
    }
}

// toEqual: by content, whatever the class; properties that are undefined do not count. The expected `b` must be the tests' own data: an object
// of the program is equal to itself alone, as what it holds is for the program to say.
function equal(a, b) {
    if (b instanceof Matching) {
        return b.holds(a);
    }
    if (Object.is(a, b)) {
        return true;
    }
    if (typeof a !== "object" || typeof b !== "object" || a === null || b === null || isOfProgram(b)) {
        return false;
    }
    a = plainView(a);
    const kind = [Array, Map, Set, Date, RegExp, Error].find((type) => a instanceof type || b instanceof type) ?? Object;
    if (!(a instanceof kind && b instanceof kind)) {
        return false;
    }
    switch (kind) {
        case Array:
            return a.length === b.length && [...a.keys()].every((place) => equal(a[place], b[place]));
        case Map:
            return a.size === b.size && [...a].every((pair) => [...b].some((other) => equal(pair, other)));
        case Set:
            return a.size === b.size && [...a].every((item) => [...b].some((other) => equal(item, other)));
        case Date:
            return a.getTime() === b.getTime();
        case RegExp:
            return String(a) === String(b);
        case Error:
            return a.message === b.message;
        default:
            return [...Object.keys(a), ...Object.keys(b)].every((key) => equal(a[key], b[key]));
    }
}

class Matching {
    constructor(holds) {
        this.holds = holds;
    }
}

function throws(body, expected) {
    try {
        body();
    } catch (error) {
        switch (true) {
            case expected === undefined:
                return true;
            case expected instanceof Matching:
                return expected.holds(error);
            case typeof expected === "string":
                return error.message.includes(expected);
            case expected instanceof RegExp:
                return expected.test(error.message);
            case typeof expected === "function":
                return error instanceof expected;
            default:
                return error.message === expected.message;
        }
    }
    return false;
}

const number = (value) => typeof value === "number" || typeof value === "bigint";
const matches = (text, part) => typeof text === "string" && (part instanceof RegExp ? part.test(text) : text.includes(part));
const MATCHERS = {
    toBe: Object.is,
    toEqual: (value, other) => equal(value, other),
    toStrictEqual: (value, other) => equal(value, other),
    toThrow: throws,
    toBeNull: (value) => value === null,
    toBeUndefined: (value) => value === undefined,
    toBeDefined: (value) => value !== undefined,
    toBeTruthy: (value) => Boolean(value),
    toBeFalsy: (value) => !value,
    toBeNaN: (value) => Number.isNaN(value),
    toBeInstanceOf: (value, type) => value instanceof type,
    toBeCloseTo: (value, near, digits = 2) => value === near || (number(value) && Math.abs(value - near) < 10 ** -digits / 2),
    toBeGreaterThan: (value, than) => number(value) && value > than,
    toBeGreaterThanOrEqual: (value, than) => number(value) && value >= than,
    toBeLessThan: (value, than) => number(value) && value < than,
    toBeLessThanOrEqual: (value, than) => number(value) && value <= than,
    toContain: (value, part) => (typeof value === "string" || Array.isArray(value)) && value.includes(part),
    toContainEqual: (value, part) => Array.isArray(value) && value.some((item) => equal(item, part)),
    toHaveLength: (value, length) => (typeof value === "string" || Array.isArray(value)) && value.length === length,
    toMatch: matches,
};

function expect(value) {
    const matchersOf = (wanted) =>
        Object.fromEntries(
            Object.entries(MATCHERS).map(([name, holds]) => [
                name,
                (...args) => {
                    if (holds(value, ...args) !== wanted) {
                        throw new Error(`${wanted ? "" : "not "}${name} does not hold`);
                    }
                },
            ]),
        );
    return { ...matchersOf(true), not: matchersOf(false) };
}

expect.stringMatching = (part) => new Matching((value) => matches(value, part));
expect.objectContaining = (parts) => new Matching((value) => Object.keys(parts).every((key) => equal(plainView(value)[key], parts[key])));

module.exports = {
    describe,
    test: Object.assign(test, { skip: () => undefined }),
    it: test,
    xdescribe: describe,
    xtest: test,
    xit: test,
    beforeEach: (hook) => scope.before.push(hook),
    afterEach: (hook) => scope.after.push(hook),
    expect,
    runTests,
};
