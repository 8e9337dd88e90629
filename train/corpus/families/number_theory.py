"""Divisibility, primes, divisors and remainders."""

# ruff: noqa: F821 - a hole is a name without a value here
# mypy: disable-error-code="name-defined"

from ..definition import Long, Vec, family


@family(
    titles=[
        "greatest common divisor of two numbers",
        "euclidean algorithm for the gcd of {a} and {b}",
        "find the largest integer that divides both {a} and {b}",
        "compute the highest common factor of two non negative integers",
        "gcd by repeated remainders",
        "given {a} and {b}, return their greatest common divisor with a loop",
        "what is the biggest number dividing {a} as well as {b}",
        "hcf of {a} and {b} using euclid",
    ],
    cases=[((12, 18), 6), ((17, 5), 1), ((0, 9), 9), ((9, 0), 9), ((48, 36), 12), ((7, 7), 7)],
)
def greatest_common_divisor(a: int, b: int) -> int:
    # repeat until the remainder is zero | loop while {b} is not 0 | euclid: continue as long as {b} is positive
    while b > 0:
        # remainder of the division | compute {a} mod {b} | what is left after dividing {a} by {b}
        remainder = a % b
        # shift the pair | {b} takes the place of {a} | the divisor becomes the new dividend
        a = b
        b = remainder
    # the last divisor is the answer | {a} holds the gcd | the remaining {a} divides both numbers
    return a


def common_divisor(a: Long, b: Long) -> Long:
    while b > 0:
        a, b = b, a % b
    return a


@family(
    titles=[
        "smallest number divisible by every number from 1 to {n}",
        "least common multiple of the first {n} positive integers",
        "lcm of 1, 2, ..., {n}",
        "find the lowest positive integer that each of 1 to {n} divides evenly",
        "project euler 5: smallest multiple of all numbers up to {n}",
        "given {n}, compute the lcm of the range 1 .. {n}",
        "which is the smallest integer without remainder for all divisors up to {n}",
        "combine the numbers up to {n} into their least common multiple",
    ],
    cases=[((1,), 1), ((2,), 2), ((10,), 2520), ((20,), 232792560), ((25,), 26771144400)],
)
def smallest_multiple_of_range(n: int) -> Long:
    # lcm of the empty range | begin with 1 | the multiple is one at first
    result: Long = 1
    # include each number in turn | extend the multiple by every {i} up to {n} | loop over 2, 3, ..., {n}
    for i in range(2, n + 1):
        # gcd of the multiple and {i} | part of {i} already contained | factor shared with {result}
        common = common_divisor(result, i)
        # lcm of both numbers | multiply by the missing part of {i} | divide by the gcd, then multiply
        result = result // common * i
    return result


@family(
    titles=[
        "check if a number is prime",
        "primality test by trial division",
        "is {n} divisible only by 1 and itself",
        "return true when the integer {n} is a prime number",
        "decide whether {n} has no divisor between 2 and its square root",
        "test the number {n} for being prime",
        "given {n}, find out if it is prime or not",
        "determine primality of {n} by dividing up to the square root",
    ],
    cases=[((0,), False), ((1,), False), ((2,), True), ((9,), False), ((29,), True), ((49,), False), ((97,), True)],
)
def is_prime_number(n: int) -> bool:
    # numbers below 2 are not prime | zero and one are no primes | primes start at 2
    if n < 2:
        return False
    i = 2
    # try divisors up to the square root | while the square of {i} is within {n} | divisors above the root are useless
    while i * i <= n:
        # a divisor was found | {i} divides {n} | the division leaves no remainder
        if n % i == 0:
            return False
        i += 1
    # no divisor exists | nothing divides the number | all candidates failed
    return True


@family(
    titles=[
        "count the primes smaller than {n}",
        "sieve of eratosthenes: how many primes are below {n}",
        "number of prime numbers less than a given bound",
        "cross out multiples and count what is left under {n}",
        "given {n}, return how many primes are strictly less than {n}",
        "use a sieve to find the quantity of primes under {n}",
        "how many prime numbers exist below {n}",
        "prime counting with the sieve of eratosthenes",
    ],
    cases=[((0,), 0), ((2,), 0), ((3,), 1), ((10,), 4), ((30,), 10), ((100,), 25)],
)
def count_primes_below(n: int) -> int:
    # mark which numbers are crossed out | no number is composite yet | one flag for each number below {n}
    composite = [False] * n
    count = 0
    for i in range(2, n):
        # still unmarked means prime | {i} was not crossed out | skip numbers known to be composite
        if not composite[i]:
            count += 1
            # cross out the multiples of {i} | every multiple of a prime is composite | mark all multiples
            for j in range(2 * i, n, i):
                composite[j] = True
    return count


@family(
    titles=[
        "prime factorization of a number",
        "list the prime factors of {n} in increasing order with repetition",
        "break {n} down into primes",
        "find all primes whose product is {n}",
        "decompose an integer into its prime factors",
        "given {n} greater than 1, return its prime divisors, repeated by multiplicity",
        "factor {n} by trial division and collect the factors",
        "which prime numbers multiply to {n}",
    ],
    cases=[((2,), [2]), ((12,), [2, 2, 3]), ((97,), [97]), ((1,), []), ((360,), [2, 2, 2, 3, 3, 5]), ((49,), [7, 7])],
)
def prime_factors(n: int) -> Vec[int]:
    factors: Vec[int] = []
    # the smallest prime | first candidate divisor | start dividing by 2
    divisor = 2
    while divisor * divisor <= n:
        # divide out this factor completely | as long as {divisor} divides {n} | the factor may occur several times
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    # the rest is a prime factor | what remains above 1 is prime | one last large factor may be left
    if n > 1:
        factors.append(n)
    return factors


@family(
    titles=[
        "euler totient of {n}",
        "count the numbers from 1 to {n} that are coprime to {n}",
        "phi function of a positive integer",
        "how many integers up to {n} share no factor with {n}",
        "compute euler phi with the prime factors of {n}",
        "number of positive integers not exceeding {n} and relatively prime to it",
        "given {n}, find the value of the totient function",
        "totient function through factorization",
    ],
    cases=[((1,), 1), ((2,), 1), ((9,), 6), ((10,), 4), ((36,), 12), ((97,), 96)],
)
def euler_totient(n: int) -> int:
    # begin with all numbers up to {n} | {result} starts as {n} | every number is a candidate at first
    result = n
    p = 2
    while p * p <= n:
        if n % p == 0:
            # remove the factor {p} from {n} | divide {n} by {p} as often as possible | strip all powers of {p}
            while n % p == 0:
                n //= p
            # discard the multiples of {p} | one in {p} numbers is not coprime | multiply by 1 - 1 / {p}
            result -= result // p
        p += 1
    # a last prime factor remains | {n} itself is now a prime | handle the leftover prime
    if n > 1:
        result -= result // n
    return result


@family(
    titles=[
        "check whether a number is perfect",
        "is {n} equal to the sum of its proper divisors",
        "perfect number test",
        "do the divisors of {n} smaller than {n} add up to {n}",
        "return true if {n} is a perfect number like 6 or 28",
        "decide if an integer is the sum of all its smaller divisors",
        "determine whether {n} is perfect by adding pairs of divisors",
        "given a positive integer {n}, test perfection",
    ],
    cases=[((1,), False), ((6,), True), ((28,), True), ((12,), False), ((496,), True), ((36,), False), ((8128,), True)],
)
def is_perfect_number(n: int) -> bool:
    # one has no proper divisor | numbers below 2 are not perfect | exclude 1
    if n < 2:
        return False
    # the divisor 1 always counts | start the sum with 1 | one divides every number
    total = 1
    i = 2
    while i * i <= n:
        if n % i == 0:
            # add the small divisor | {i} is a divisor | include {i} in the sum
            total += i
            # add its partner once | the other divisor, unless it is a square root | add the matching large divisor
            if i * i != n:
                total += n // i
        i += 1
    return total == n


@family(
    titles=[
        "modular exponentiation: {base} to the power {exponent} modulo {M}",
        "compute a power and keep only the remainder by {M}",
        "raise {base} to {exponent} and reduce modulo {M} with fast squaring",
        "binary exponentiation with remainder {M}",
        "find ({base} ^ {exponent}) mod {M}",
        "remainder of a large power when divided by {M}",
        "square and multiply algorithm modulo {M}",
        "what does {base} raised to the {exponent} leave after division by {M}",
    ],
    cases=[((2, 10), 24), ((5, 0), 1), ((0, 5), 0), ((7, 3), 343), ((3, 13), 323), ((1234, 2), 756)],
    holes={"M": (1000, 97, 997, 1009, 9973)},
)
def modular_power(base: int, exponent: int) -> int:
    result = 1
    # reduce the base first | take {base} modulo {M} | keep {base} below {M}
    base %= M
    while exponent > 0:
        # the current bit is set | odd exponent: use one factor | when {exponent} is odd multiply
        if exponent % 2 == 1:
            result = result * base % M
        # square the base | {base} times itself modulo {M} | go to the next power of two
        base = base * base % M
        # halve the exponent | move to the next bit | integer division by 2
        exponent //= 2
    return result


def has_no_divisor(n: int) -> bool:
    i = 2
    while i * i <= n:
        if n % i == 0:
            return False
        i += 1
    return n > 1


@family(
    titles=[
        "goldbach: split an even number into two primes",
        "find the smallest prime that leaves another prime when subtracted from {n}",
        "given an even {n} above 2, return the lower prime of a pair with sum {n}",
        "write {n} as a sum of two primes and return the smaller one, as small as possible",
        "smallest prime p such that {n} - p is prime too, or -1",
        "goldbach partition of {n}: its least prime",
        "least prime of the goldbach decomposition of {n}, -1 if there is none",
        "search two primes adding up to {n} and give back the first",
    ],
    cases=[((4,), 2), ((6,), 3), ((28,), 5), ((98,), 19), ((11,), -1), ((9,), 2)],
)
def smallest_goldbach_prime(n: int) -> int:
    # try the smaller part first | the smaller prime is at most half of {n} | loop up to half of the number
    for p in range(2, n // 2 + 1):
        rest = n - p
        # both parts are prime | neither {p} nor {rest} has a divisor | check the two summands
        if has_no_divisor(p) and has_no_divisor(rest):
            # the first hit is the smallest | found a pair | return the lower prime
            return p
    # no pair exists | the number cannot be split | nothing found
    return -1


@family(
    titles=[
        "remainder of a huge decimal number when divided by {K}",
        "number given as a string modulo {K}",
        "compute {s} mod {K} where {s} is a long string of digits",
        "a very large integer is stored as text: find its remainder by {K}",
        "process the digits of {s} from left to right to get the value modulo {K}",
        "mod {K} of a big number that does not fit into an integer",
        "what is left when the number written in {s} is divided by {K}",
        "string of digits, remainder after division by {K}",
    ],
    cases=[(("0",), 0), (("14",), 0), (("100",), 2), (("12345678901234567890",), 1), (("6",), 6), (("7000000000001",), 1)],
    holes={"K": (7, 3, 9, 11, 13, 37, 101)},
)
def decimal_string_remainder(s: str) -> int:
    # remainder of the empty prefix | nothing read yet | start with remainder 0
    remainder = 0
    # read the digits one by one | go through the characters | from the first digit to the last
    for c in s:
        # value of the character | turn the character into a digit | numeric value of {c}
        digit = ord(c) - ord("0")
        # append the digit and reduce | ten times the old remainder plus the digit | update modulo {K}
        remainder = (remainder * 10 + digit) % K
    return remainder


@family(
    titles=[
        "count pairs of primes up to {n} with difference {K}",
        "how many primes p have p + {K} also prime and at most {n}",
        "number of prime pairs (p, p + {K}) not exceeding {n}",
        "find how many couples of primes within {n} are exactly {K} apart",
        "given {n}, count the prime pairs whose gap is {K}",
        "primes at distance {K} from each other: how many pairs up to {n}",
        "pairs of prime numbers below or equal to {n} that differ by {K}",
        "amount of primes p with p + {K} prime, both no larger than {n}",
    ],
    cases=[((5,), 1), ((4,), 0), ((13,), 3), ((30,), 4), ((31,), 5), ((0,), 0)],
    holes={"K": (2, 4, 6, 8, 10)},
)
def count_prime_pairs(n: int) -> int:
    # no pair so far | initialise the counter | counter of pairs
    count = 0
    # smaller prime of the pair | {p} + {K} must not exceed {n} | loop over all lower members
    for p in range(2, n - K + 1):
        # both numbers are prime | {p} and {p} + {K} have no divisor | test the two members
        if has_no_divisor(p) and has_no_divisor(p + K):
            count += 1
    return count


@family(
    titles=[
        "trailing zeros of a factorial",
        "how many zeros are at the end of {n} factorial",
        "count the factors 5 in {n}! to get its final zeros",
        "number of trailing zeroes in the product 1 * 2 * ... * {n}",
        "given {n}, find with how many zeros {n}! ends",
        "zeros at the right end of the factorial of {n}, without computing the factorial",
        "legendre formula with 5: ending zeros of {n}!",
        "find the amount of zero digits that close the decimal form of {n} factorial",
    ],
    cases=[((0,), 0), ((4,), 0), ((5,), 1), ((25,), 6), ((100,), 24), ((1000,), 249)],
)
def trailing_zeros_of_factorial(n: int) -> int:
    # no zeros found yet | counter of zeros | initialise {count} to 0
    count = 0
    # continue while multiples of five exist | until the quotient is below 5 | loop on the powers of five
    while n >= 5:
        # numbers divisible by this power of 5 | divide by five | how many multiples of five are left
        n //= 5
        # each gives one zero | add the quotient | every factor 5 makes a trailing zero
        count += n
    return count


@family(
    titles=[
        "chinese remainder theorem by sieving",
        "smallest non negative number with given remainders for pairwise coprime moduli",
        "find the least x that leaves {remainders} when divided by {moduli}",
        "solve a system of congruences step by step",
        "which is the lowest number whose remainder modulo each entry of {moduli} is the matching entry of {remainders}",
        "given coprime {moduli} and the wanted {remainders}, search the first integer that fits all of them",
        "sun tzu's problem: a number is known only by its remainders, recover it",
        "combine several congruences into their smallest common solution",
    ],
    cases=[
        (([3, 5, 7], [2, 3, 2]), 23),
        (([2], [1]), 1),
        (([5, 7], [1, 3]), 31),
        (([3, 4, 5], [2, 3, 1]), 11),
        (([2, 3, 5], [0, 0, 0]), 0),
    ],
)
def smallest_number_with_remainders(moduli: list[int], remainders: list[int]) -> int:
    x = 0
    # distance between the solutions found so far | every number is allowed at first | start with a step of one
    step = 1
    # satisfy one congruence after the other | treat the moduli in turn | loop over all conditions
    for i in range(len(moduli)):
        # move on until this remainder fits | try the next candidate | steps keep the earlier remainders unchanged
        while x % moduli[i] != remainders[i]:
            x += step
        # solutions repeat after the product | include the modulus in the step | multiply the step by this modulus
        step *= moduli[i]
    return x
