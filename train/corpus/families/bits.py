"""Bit manipulation on non-negative integers."""

# ruff: noqa: F821 - a hole is a name without a value here
# mypy: disable-error-code="name-defined"

from ..definition import family


@family(
    titles=[
        "count the set bits of an integer",
        "number of ones in the binary form of {n}",
        "brian kernighan algorithm to count bits",
        "how many bits of {n} are 1",
        "find the hamming weight of {n}",
        "population count by clearing the lowest one again and again",
        "given {n}, return how many of its binary digits equal one",
        "popcount of a non negative integer",
    ],
    cases=[((0,), 0), ((1,), 1), ((8,), 1), ((13,), 3), ((255,), 8), ((2147483647,), 31)],
)
def count_set_bits(n: int) -> int:
    # no bit counted yet | start the counter at 0 | counter of ones
    count = 0
    # one pass for each set bit | loop while a bit is left | until {n} is zero
    while n > 0:
        # clear the lowest set bit | {n} and {n} - 1 drops the last one | remove the rightmost 1
        n = n & (n - 1)
        count += 1
    return count


@family(
    titles=[
        "check if a number is a power of two",
        "does {n} have exactly one bit set",
        "power of 2 test with a bit trick",
        "is {n} one of 1, 2, 4, 8, 16 and so on",
        "return true when {n} equals two raised to some exponent",
        "use n and n - 1 to detect powers of two",
        "decide whether the integer {n} can be written as 2 to the k",
        "verify that a given number is a power of 2",
    ],
    cases=[((0,), False), ((1,), True), ((2,), True), ((6,), False), ((1024,), True), ((1023,), False), ((-8,), False)],
)
def is_power_of_two(n: int) -> bool:
    # only positive numbers qualify | zero and negatives are no powers | reject numbers below 1
    if n <= 0:
        return False
    # clear the lowest set bit | drop the single one of a power | remove the rightmost 1 from {n}
    rest = n & (n - 1)
    # nothing may remain | a power has just one bit | true if no other bit is set
    return rest == 0


@family(
    titles=[
        "gray code sequence for {n} bits",
        "generate all {n} bit gray codes in order",
        "list of integers where neighbours differ in one bit",
        "return the reflected binary code of width {n} as numbers",
        "build the sequence of 2 ^ {n} gray codes starting with 0",
        "compute i xor i / 2 for every {n} bit number i",
        "produce the {n} bit gray code, one integer for each position",
        "all gray code values of a given bit length",
    ],
    cases=[((0,), [0]), ((1,), [0, 1]), ((2,), [0, 1, 3, 2]), ((3,), [0, 1, 3, 2, 6, 7, 5, 4])],
)
def gray_code_sequence(n: int) -> list[int]:
    # there are 2 to the {n} codes | length of the sequence | number of codes
    size = 1 << n
    result = [0] * size
    # fill each position | loop over all {n} bit numbers | for each index of the sequence
    for i in range(size):
        # xor the index with itself shifted right | gray code of {i} | {i} xor half of {i}
        result[i] = i ^ (i >> 1)
    return result


@family(
    titles=[
        "convert a gray code to a binary number",
        "decode the gray code {gray}",
        "find the integer whose gray code is {gray}",
        "inverse of the gray code by xor of all right shifts",
        "given a gray coded value, recover the ordinary number",
        "gray to binary conversion",
        "position of {gray} in the gray code sequence",
        "undo gray coding: turn {gray} back into its binary value",
    ],
    cases=[((0,), 0), ((1,), 1), ((2,), 3), ((3,), 2), ((4,), 7), ((8,), 15), ((15,), 10)],
)
def gray_to_binary(gray: int) -> int:
    # start with zero | the decoded number | no bits decoded yet
    result = 0
    # until all bits are shifted out | loop while {gray} is positive | repeat until no bit is left
    while gray > 0:
        # combine by exclusive or | xor the shifted code into {result} | toggle the bits of {result}
        result ^= gray
        # shift right by one | drop the lowest bit of {gray} | move the code one place
        gray >>= 1
    return result


@family(
    titles=[
        "check if the number of set bits is odd",
        "parity of an integer: true for an odd count of ones",
        "does {n} have odd parity",
        "find the parity bit of {n}",
        "toggle a flag for each one in the binary form of {n}",
        "is the amount of 1 bits in {n} odd",
        "given {n}, return true if it contains an odd number of ones in binary",
        "odd parity test",
    ],
    cases=[((0,), False), ((1,), True), ((3,), False), ((7,), True), ((8,), True), ((10,), False), ((255,), False)],
)
def has_odd_parity(n: int) -> bool:
    # zero ones is even | the parity is even at first | start with false
    odd = False
    while n > 0:
        # the lowest bit is set | look at the last bit | when {n} ends with a one
        if n & 1 == 1:
            # flip the parity | negate the flag | even becomes odd and odd becomes even
            odd = not odd
        # go to the next bit | shift {n} right | drop the lowest bit
        n >>= 1
    return odd


@family(
    titles=[
        "find the number that appears once while all others appear twice",
        "single number in an array of pairs",
        "every element of {arr} occurs two times except one: return it",
        "xor all elements to find the unpaired one",
        "given an array {arr} where numbers come in pairs, find the lonely number",
        "element without a partner in {arr}",
        "which value of {arr} has no duplicate, all the rest being doubled",
        "use exclusive or to detect the integer that is not repeated",
    ],
    cases=[(([5],), 5), (([2, 2, 1],), 1), (([4, 1, 2, 1, 2],), 4), (([7, 3, 7, 9, 3],), 9), (([0, 6, 0],), 6)],
)
def single_number(arr: list[int]) -> int:
    # zero is neutral for xor | start with 0 | initialise the xor of all elements
    result = 0
    # go through the array | take every element | loop over all numbers
    for x in arr:
        # pairs cancel out | combine by exclusive or | xor {x} into {result}
        result ^= x
    # only the single number is left | all pairs vanished | what remains is unpaired
    return result


@family(
    titles=[
        "find the two numbers that appear once while all others appear twice",
        "two unpaired elements of an array by xor",
        "every value in {arr} is doubled except two: return both in ascending order",
        "split the array by a differing bit to find two single numbers",
        "given {arr} with exactly two non repeating integers, return them sorted",
        "two odd occurring elements where the rest come in pairs",
        "separate and return the pair of elements of {arr} that have no duplicates",
        "single number problem with two answers, smaller one first",
    ],
    cases=[(([1, 2],), [1, 2]), (([1, 2, 1, 3, 2, 5],), [3, 5]), (([9, 4, 4, 2],), [2, 9]), (([0, 8, 7, 7],), [0, 8])],
)
def two_single_numbers(arr: list[int]) -> list[int]:
    mixed = 0
    # xor of both wanted numbers | pairs cancel, two numbers stay mixed | combine all elements
    for x in arr:
        mixed ^= x
    # a bit in which the two numbers differ | lowest set bit of {mixed} | isolate the rightmost one
    bit = mixed & -mixed
    a = 0
    b = 0
    # split into two groups by that bit | each group holds one of the numbers | divide the elements by {bit}
    for x in arr:
        if x & bit == 0:
            a ^= x
        else:
            b ^= x
    # smaller number first | put them in ascending order | return the sorted pair
    return [min(a, b), max(a, b)]


@family(
    titles=[
        "maximum xor of two elements of an array",
        "largest value of {arr}[i] xor {arr}[j] over all pairs",
        "find the biggest exclusive or that two numbers of {arr} can give",
        "try all pairs of {arr} and keep the highest xor",
        "given non negative integers, which two have the greatest bitwise difference: return their xor",
        "best xor of any pair of elements, 0 if there is no pair",
        "what is the top result of combining two entries of {arr} with exclusive or",
        "pair of array elements whose xor is as large as possible",
    ],
    cases=[(([],), 0), (([7],), 0), (([8, 1, 2],), 10), (([4, 4],), 0), (([14, 70],), 72), (([3, 10, 5, 25, 2, 8],), 28)],
)
def maximum_pair_xor(arr: list[int]) -> int:
    # the best xor so far | no pair seen yet | start from 0
    best = 0
    # first element of the pair | fix one element | loop over every element
    for i in range(len(arr)):
        # second element of the pair | combine with all elements behind it | loop over the later elements
        for j in range(i + 1, len(arr)):
            # exclusive or of the pair | xor both elements | combine the two values
            value = arr[i] ^ arr[j]
            # keep the larger value | a better pair was found | update the maximum
            best = max(best, value)
    return best


@family(
    titles=[
        "hamming distance between two integers",
        "count the bit positions where {a} and {b} differ",
        "number of bits to flip to turn {a} into {b}",
        "in how many binary digits do two numbers disagree",
        "bit flips needed to convert {a} to {b}",
        "xor {a} with {b} and count the ones",
        "how many corresponding bits of {a} and {b} are different",
        "compute the hamming distance of {a} and {b}",
    ],
    cases=[((0, 0), 0), ((1, 4), 2), ((3, 1), 1), ((29, 15), 2), ((0, 255), 8), ((5, 5), 0)],
)
def hamming_distance(a: int, b: int) -> int:
    # differing bits become ones | exclusive or of both numbers | a one marks a difference
    diff = a ^ b
    count = 0
    # look at every bit of the difference | until no differing bit is left | scan {diff} bit by bit
    while diff > 0:
        # add the lowest bit | a set bit is one difference | count the last bit
        count += diff & 1
        # next bit | shift right by one | drop the lowest bit
        diff >>= 1
    return count


@family(
    titles=[
        "reverse the lowest {W} bits of a number",
        "mirror {n} as a {W} bit pattern",
        "read the {W} bit representation of {n} backwards",
        "bit reversal of {n} within {W} bits",
        "given a {W} bit integer, swap its first bit with the last, the second with the one before, and so on",
        "return the number obtained by writing the {W} bits of {n} in opposite order",
        "flip the order of the bits of {n}, word size {W}",
        "reverse bits in a word of {W} bits",
    ],
    cases=[((0,), 0), ((1,), 128), ((6,), 96), ((128,), 1), ((255,), 255), ((200,), 19)],
    holes={"W": (8, 4, 6, 10, 12, 16)},
)
def reverse_bits(n: int) -> int:
    result = 0
    # handle {W} bits | once for each of the {W} positions | loop over the word
    for i in range(W):
        # bit number {i} of the input | read the bit at position {i} | extract one bit
        bit = (n >> i) & 1
        # put it at the mirrored place | set the opposite position | store the bit counted from the other end
        result |= bit << (W - 1 - i)
    # the bits are in opposite order | all bits were moved | give back the mirrored pattern
    return result


@family(
    titles=[
        "position of the lowest set bit",
        "index of the rightmost one in the binary form of {n}",
        "how many trailing zero bits does {n} have, -1 for zero",
        "find the place of the first 1 bit from the right, counting from 0",
        "largest k such that 2 ^ k divides {n}, found by shifting",
        "return the index of the least significant one of {n} or -1",
        "count trailing zeros of {n} in binary, with -1 when {n} is 0",
        "where is the least significant set bit of an integer",
    ],
    cases=[((0,), -1), ((1,), 0), ((2,), 1), ((12,), 2), ((18,), 1), ((1024,), 10)],
)
def lowest_set_bit_position(n: int) -> int:
    # zero has no set bit | nothing to find in 0 | return -1 for zero
    if n == 0:
        return -1
    position = 0
    # skip the zeros on the right | while the last bit is 0 | until the number ends with a one
    while n & 1 == 0:
        # shift to the next bit | drop the trailing zero | move {n} one place to the right
        n >>= 1
        position += 1
    return position


@family(
    titles=[
        "rotate a {W} bit number to the left",
        "circular left shift of {n} by {k} places in a {W} bit word",
        "left rotation of the {W} bits of {n} by {k}",
        "shift {n} left by {k} and bring the lost bits back on the right, word size {W}",
        "rotate the bits of an integer with {W} bits {k} times to the left",
        "rol operation on a word of {W} bits",
        "move every bit of a {W} bit value {k} positions up, wrapping around",
        "bitwise rotation: {n} turned left by {k} within {W} bits",
    ],
    cases=[((1, 1), 2), ((128, 1), 1), ((210, 3), 150), ((255, 4), 255), ((5, 8), 5), ((5, 0), 5)],
    holes={"W": (8, 12, 16)},
)
def rotate_left(n: int, k: int) -> int:
    # mask of {W} ones | all bits of the word | number with {W} bits set
    mask = (1 << W) - 1
    # full turns change nothing | reduce {k} modulo {W} | keep the shift below the word size
    k %= W
    # bits that stay inside after the shift | shift left and cut to {W} bits | upper part of the result
    high = (n << k) & mask
    # bits that wrap around | the {k} top bits come back on the right | lower part of the result
    low = n >> (W - k)
    return high | low


@family(
    titles=[
        "add two numbers without the plus operator",
        "sum of {a} and {b} using only bit operations",
        "half adder loop: addition by xor and carry",
        "implement addition with and, xor and shift",
        "compute {a} + {b} without arithmetic operators",
        "bitwise addition of two non negative integers",
        "propagate the carry until it is zero to add {a} and {b}",
        "how to add {a} and {b} when + is not allowed",
    ],
    cases=[((0, 0), 0), ((1, 1), 2), ((5, 0), 5), ((0, 9), 9), ((27, 15), 42), ((1023, 1), 1024)],
)
def add_with_bits(a: int, b: int) -> int:
    # repeat until there is no carry | loop while {b} holds a carry | go on as long as {b} is not 0
    while b != 0:
        # both bits set give a carry | positions where a carry arises | common bits of {a} and {b}
        carry = a & b
        # add without carry | exclusive or is the sum of single bits | sum the bits independently
        a = a ^ b
        # the carry moves one place left | shift the carry | carry goes to the next bit
        b = carry << 1
    return a


@family(
    titles=[
        "multiply two numbers with shifts and additions",
        "russian peasant multiplication of {a} and {b}",
        "product of {a} and {b} without the multiplication operator",
        "double one factor and halve the other to multiply",
        "egyptian method for {a} times {b}",
        "compute {a} * {b} by looking at the bits of {b}",
        "binary multiplication: add shifted copies of {a}",
        "shift and add algorithm for the product of two non negative integers",
    ],
    cases=[((0, 7), 0), ((7, 0), 0), ((1, 9), 9), ((6, 7), 42), ((13, 12), 156), ((1000, 1000), 1000000)],
)
def multiply_with_shifts(a: int, b: int) -> int:
    result = 0
    # one round for each bit of {b} | until {b} has no bits | loop while {b} is positive
    while b > 0:
        # the current bit of {b} is one | when {b} is odd | if the lowest bit is set
        if b & 1 == 1:
            # add the shifted copy | {a} belongs to the product | take this multiple of the first factor
            result += a
        # double {a} | shift the first factor left | next copy is twice as large
        a <<= 1
        # halve {b} | go to the next bit of {b} | shift the second factor right
        b >>= 1
    return result


@family(
    titles=[
        "find the number that appears once when all others appear {K} times",
        "single element among groups of {K} equal numbers",
        "every element of {arr} occurs {K} times except one that occurs once: return it",
        "count each bit modulo {K} to find the unique number",
        "all values come {K} fold but one does not: which one",
        "unique integer of {arr}, the others being repeated {K} times",
        "rebuild the lonely number from bit counts that {K} does not divide",
        "given {arr} where numbers repeat {K} times, find the one without repetition",
    ],
    cases=[(([8],), 8), (([2, 2, 3, 2],), 3), (([0, 1, 0, 1, 0, 1, 99],), 99), (([5, 5, 6, 5, 6, 6, 4],), 4)],
    holes={"K": (3, 5, 7)},
)
def single_among_repeated(arr: list[int]) -> int:
    result = 0
    # treat each bit position apart | check the bits 0 to 30 | loop over all bits of an integer
    for bit in range(31):
        count = 0
        # how many numbers have this bit | count the ones at position {bit} | sum the bit over the array
        for x in arr:
            count += (x >> bit) & 1
        # repeated numbers give multiples of {K} | a remainder comes from the single number | not divisible by {K}
        if count % K != 0:
            # the answer has this bit | set the bit in {result} | switch on position {bit}
            result |= 1 << bit
    return result


@family(
    titles=[
        "longest run of ones in the binary form of a number",
        "maximum number of consecutive 1 bits in {n}",
        "length of the longest block of set bits",
        "how many ones stand next to each other at most in {n} written in binary",
        "find the largest group of adjacent set bits of {n}",
        "and the number with its shifted self until it vanishes, counting the rounds",
        "longest sequence of successive ones in the bits of {n}",
        "given {n}, return the size of its widest streak of one bits",
    ],
    cases=[((0,), 0), ((1,), 1), ((5,), 1), ((14,), 3), ((222,), 4), ((255,), 8)],
)
def longest_run_of_ones(n: int) -> int:
    # rounds done so far | no run found yet | length starts at zero
    length = 0
    # as long as a run survives | loop until {n} is 0 | while some bit is set
    while n > 0:
        # every run becomes one bit shorter | keep bits followed by another one | and with the shifted number
        n = n & (n << 1)
        # one more bit in the longest run | count the round | the longest run has another bit
        length += 1
    return length


@family(
    titles=[
        "count the numbers in which bit {K} is set",
        "how many elements of {arr} have a one at bit position {K}, counting from 0",
        "array elements with bit number {K} switched on",
        "test bit {K} of each element and count the hits",
        "given {arr}, return the number of values whose bit {K} equals 1",
        "number of integers in {arr} that contain the power 2 ^ {K} in binary",
        "use a mask with only bit {K} to count matching elements",
        "in how many members of {arr} is the bit with index {K} equal to one",
    ],
    cases=[(([],), 0), (([4],), 1), (([1, 2, 3],), 0), (([4, 5, 6, 7, 8],), 4), (([12, 16, 20],), 2)],
    holes={"K": (2, 0, 1, 3, 4, 5)},
)
def count_numbers_with_bit(arr: list[int]) -> int:
    # mask with only bit {K} | shift one by {K} places | a single one at position {K}
    mask = 1 << K
    count = 0
    for x in arr:
        # the element has the bit | check the bit with the mask | when {x} shares the bit of the mask
        if x & mask != 0:
            # one more number | increase the counter | count this element
            count += 1
    return count


@family(
    titles=[
        "check if the bits of a number alternate",
        "do neighbouring binary digits of {n} always differ",
        "alternating bit pattern test such as 10101",
        "return true if {n} has no two equal adjacent bits",
        "decide whether zeros and ones take turns in the binary form of {n}",
        "is the binary representation of {n} free of 00 and 11",
        "scan the bits of {n} and compare each with the one before",
        "binary number with alternating bits: yes or no",
    ],
    cases=[((1,), True), ((5,), True), ((7,), False), ((10,), True), ((11,), False), ((4,), False), ((42,), True)],
)
def has_alternating_bits(n: int) -> bool:
    # remember the last bit | lowest bit of {n} | bit to compare with
    previous = n & 1
    n >>= 1
    while n > 0:
        bit = n & 1
        # two equal neighbours | the pattern is broken | same bit twice in a row
        if bit == previous:
            return False
        # keep the bit for the next round | this bit is the next neighbour | move on to the next pair
        previous = bit
        n >>= 1
    return True
