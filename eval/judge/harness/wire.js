// JavaScript values by V8's structured clone: plain data only, no functions and no prototypes.
"use strict";
const fs = require("fs");
const v8 = require("v8");

const LIMIT = 16 * 2 ** 20; // bytes of one message

// Messages of 8 bytes of length and a clone, on descriptors 3 (in) and 4 (out).
function send(value) {
    const body = v8.serialize(value);
    const head = Buffer.alloc(8);
    head.writeBigUInt64LE(BigInt(body.length));
    const data = Buffer.concat([head, body]);
    for (let done = 0; done < data.length; ) {
        done += fs.writeSync(4, data, done);
    }
}

function read(size) {
    const data = Buffer.alloc(size);
    for (let done = 0; done < size; ) {
        const count = fs.readSync(3, data, done, size - done);
        if (count === 0) {
            throw new Error("end of file");
        }
        done += count;
    }
    return data;
}

function receive() {
    const size = Number(read(8).readBigUInt64LE());
    if (size > LIMIT) {
        throw new Error(`a message of ${size} bytes is over the limit of ${LIMIT}`);
    }
    return v8.deserialize(read(size));
}

module.exports = { send, receive };
