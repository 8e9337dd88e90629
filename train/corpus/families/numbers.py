"""Digits, number bases, sequences and geometry on integers."""

# ruff: noqa: F821 - a hole is a name without a value here
# mypy: disable-error-code="name-defined"

from ..definition import family


@family(
    titles=[
        "reverse the digits of an integer",
        "write the decimal digits of {n} in the opposite order",
        "given a positive number {n}, return the number read from right to left",
        "mirror a number: turn 123 into 321",
        "build a new integer from {n} whose digits appear backwards",
        "program to flip the order of digits in a number",
        "what number do you get when {n} is read backwards",
        "find the reverse of a given number {n}",
    ],
    cases=[((123,), 321), ((0,), 0), ((7,), 7), ((1200,), 21), ((90807,), 70809)],
)
def reverse_digits(n: int) -> int:
    # start with an empty result | the reversed number begins at 0 | initialise {result} to zero
    result = 0
    # while digits are left | repeat until {n} becomes 0 | keep going as long as {n} is positive
    while n > 0:
        # take the last digit | the remainder by 10 is the final digit | read the unit digit of {n}
        digit = n % 10
        # append the digit to {result} | shift {result} one place and add {digit} | push {digit} at the end
        result = result * 10 + digit
        # remove the last digit of {n} | drop the digit just used | divide {n} by 10
        n //= 10
    return result


@family(
    titles=[
        "digital root of a number",
        "add the digits of {n} again and again until one digit remains",
        "repeatedly replace {n} by the sum of its digits until it is below 10",
        "find the single digit obtained by summing digits over and over",
        "given a non negative integer, reduce it to one digit by adding its digits",
        "keep summing the digits of {n} while it has more than one digit",
        "repeated digital sum of an integer",
        "compute the digital root of {n} with two nested loops",
    ],
    cases=[((0,), 0), ((9,), 9), ((38,), 2), ((10,), 1), ((99999,), 9), ((493193,), 2)],
)
def digital_root(n: int) -> int:
    # repeat while {n} has several digits | loop until a single digit is left | as long as {n} exceeds 9
    while n > 9:
        total = 0
        # add up the digits of {n} | sum all decimal digits | go through every digit of the number
        while n > 0:
            total += n % 10
            n //= 10
        # continue with the sum | the digit sum replaces the number | use {total} as the new {n}
        n = total
    return n


def integer_power(base: int, exponent: int) -> int:
    result = 1
    while exponent > 0:
        result *= base
        exponent -= 1
    return result


@family(
    titles=[
        "check whether a number is an armstrong number",
        "is {n} equal to the sum of its digits raised to the number of digits",
        "test if {n} is a narcissistic number",
        "armstrong number test",
        "determine if an integer equals the sum of its own digits each to the power of the digit count",
        "return true when {n} is an armstrong number such as 153",
        "narcissistic numbers: decide if {n} is one of them",
        "given an integer {n}, verify that it is armstrong",
    ],
    cases=[((153,), True), ((154,), False), ((1,), True), ((9474,), True), ((10,), False), ((407,), True)],
)
def is_armstrong_number(n: int) -> bool:
    # count the digits of {n} | the number of digits is the exponent | length of {n} in decimal
    digits = len(str(n))
    total = 0
    # work on a copy of {n} | keep {n} for the final comparison | copy the number
    temp = n
    while temp > 0:
        # add the power of the last digit | raise the unit digit to {digits} and add it | sum the digit powers
        total += integer_power(temp % 10, digits)
        # move to the next digit | discard the last digit | cut off the unit digit
        temp //= 10
    # compare the sum with {n} | true if the sum gives {n} back | the number is armstrong if both agree
    return total == n


@family(
    titles=[
        "check if a number is happy",
        "happy number test",
        "replace {n} by the sum of the squares of its digits: does it ever reach 1",
        "decide whether repeatedly summing squared digits of {n} ends at one",
        "return true if {n} is a happy number, false if it falls into a cycle",
        "detect happy numbers with a set of values already visited",
        "does the process of adding squared digits lead {n} to 1",
        "determine whether {n} is happy",
    ],
    cases=[((1,), True), ((7,), True), ((19,), True), ((2,), False), ((4,), False), ((100,), True), ((20,), False)],
)
def is_happy_number(n: int) -> bool:
    # remember the values seen so far | set of visited numbers | store numbers to notice a cycle
    seen: set[int] = set()
    # stop at 1 or at a repeated value | loop until {n} is 1 or comes back | go on while {n} is new and not 1
    while n != 1 and n not in seen:
        seen.add(n)
        total = 0
        # sum the squares of the digits | add each digit squared | square every digit and add it up
        while n > 0:
            digit = n % 10
            total += digit * digit
            n //= 10
        n = total
    # happy only if it ended at 1 | check whether 1 was reached | the number is happy when {n} is one
    return n == 1


@family(
    titles=[
        "check whether a number is a kaprekar number",
        "can the square of {n} be cut into two parts that add up to {n}",
        "kaprekar number test",
        "decide if {n} squared splits into a left and a right number whose sum is {n}",
        "return true for numbers like 45 where 45 * 45 = 2025 and 20 + 25 = 45",
        "split the square of {n} at every place and look for two pieces with sum {n}",
        "is the given positive integer a kaprekar number",
        "verify the kaprekar property of {n}",
    ],
    cases=[((1,), True), ((9,), True), ((10,), False), ((45,), True), ((46,), False), ((297,), True), ((2,), False)],
)
def is_kaprekar_number(n: int) -> bool:
    # one is kaprekar by definition | the number 1 always counts | special case for 1
    if n == 1:
        return True
    square = n * n
    divisor = 10
    # try every place to cut the square | move the cut one digit left each time | test all splits of {square}
    while divisor <= square:
        left = square // divisor
        right = square % divisor
        # the right part must be positive | both parts add up to {n}, right not zero | found a valid split
        if right > 0 and left + right == n:
            return True
        divisor *= 10
    # no split works | no cut gave the number | nothing found
    return False


@family(
    titles=[
        "convert {n} to base {B}",
        "write a decimal number in base {B} as a string",
        "representation of the non negative integer {n} in the numeral system with base {B}",
        "change a number from base 10 to base {B}",
        "return the digits of {n} in base {B} as text",
        "divide {n} by {B} repeatedly and collect the remainders into a string",
        "express the integer {n} using only the digits of base {B}",
        "base {B} notation of a given number",
    ],
    cases=[((0,), "0"), ((1,), "1"), ((10,), "1010"), ((255,), "11111111"), ((64,), "1000000")],
    holes={"B": (2, 3, 4, 5, 7, 8, 9)},
)
def convert_to_base(n: int) -> str:
    # zero is written as 0 | the number 0 has one digit | handle zero apart
    if n == 0:
        return "0"
    result = ""
    # divide until nothing is left | loop while {n} is positive | repeat until the quotient is 0
    while n > 0:
        # put the remainder in front | the remainder by {B} is the next digit | prepend the digit {n} mod {B}
        result = str(n % B) + result
        # go on with the quotient | integer division by {B} | shrink {n} by the base
        n //= B
    return result


@family(
    titles=[
        "find the spreadsheet column name of a column number",
        "excel column title for {n}",
        "given a column number, return its letters as in a spreadsheet: 1 is A, 27 is AA",
        "convert a positive integer into column letters A, B, ..., Z, AA, AB",
        "write {n} in the bijective base 26 with capital letters",
        "which letters name the column with number {n} in excel",
        "map column index {n} to its alphabetic label",
        "column number to column title",
    ],
    cases=[((1,), "A"), ((26,), "Z"), ((27,), "AA"), ((52,), "AZ"), ((701,), "ZY"), ((703,), "AAA")],
)
def column_title(n: int) -> str:
    result = ""
    while n > 0:
        # make the number zero based | shift so that A is 0 | subtract one as there is no zero letter
        n -= 1
        # code of the last letter | character code for the remainder by 26 | find the letter of this position
        code = ord("A") + n % 26
        # put the letter in front | prepend the letter to {result} | add the new letter on the left
        result = chr(code) + result
        # continue with the remaining letters | divide by 26 | drop the position just written
        n //= 26
    return result


@family(
    titles=[
        "count how many times the digit {D} occurs in a number",
        "number of digits of {n} equal to {D}",
        "how often does {D} appear in the decimal form of {n}",
        "given an integer {n}, count its digits that are {D}",
        "frequency of digit {D} in {n}",
        "look at each digit of the number and count every {D}",
        "find the total occurrences of {D} among the digits of {n}",
        "digit count: occurrences of {D} in an integer",
    ],
    cases=[((7,), 1), ((0,), 0), ((7177,), 3), ((123456,), 0), ((70707,), 3), ((1000000007,), 1)],
    holes={"D": (7, 1, 2, 3, 4, 5, 6, 8, 9)},
)
def count_digit(n: int) -> int:
    # no occurrence so far | start counting at zero | set the counter to 0
    count = 0
    while n > 0:
        # the last digit is {D} | compare the unit digit with {D} | if the current digit equals {D}
        if n % 10 == D:
            count += 1
        # remove the last digit | go to the next digit | divide by ten
        n //= 10
    return count


@family(
    titles=[
        "sum of all multiples of {A} or {B} below {n}",
        "add up the natural numbers smaller than {n} that are divisible by {A} or by {B}",
        "find the total of numbers under {n} which are multiples of {A} or {B}",
        "project euler 1: sum the multiples of {A} and {B} below a limit",
        "given {n}, sum every positive integer less than {n} divisible by {A} or {B}",
        "compute the sum of numbers from 1 to {n} - 1 that {A} or {B} divides",
        "what do the multiples of {A} or {B} lower than {n} add up to",
        "total of the positive integers below a bound divisible by at least one of {A} and {B}",
    ],
    cases=[((10,), 23), ((1,), 0), ((3,), 0), ((4,), 3), ((16,), 60), ((20,), 78)],
    holes={"A": (3, 2, 4), "B": (5, 7, 9, 11)},
)
def sum_of_multiples_below(n: int) -> int:
    # the total is zero at first | initialise the sum | start from a sum of 0
    total = 0
    # try every number below {n} | loop over 1, 2, ..., {n} - 1 | for each positive integer under {n}
    for i in range(1, n):
        # divisible by {A} or {B} | when {A} or {B} divides {i} | check both divisors
        if i % A == 0 or i % B == 0:
            total += i
    return total


@family(
    titles=[
        "count the steps of the collatz sequence",
        "how many collatz steps does {n} need to reach 1",
        "halve even numbers and map odd ones to 3 n + 1: number of steps until 1",
        "length of the path from {n} to one in the 3x + 1 problem",
        "number of operations of the collatz process started at {n}",
        "given a positive integer {n}, find its collatz stopping time",
        "hailstone sequence: steps needed to arrive at 1 from {n}",
        "simulate the collatz rule on {n} and return how many moves it makes",
    ],
    cases=[((1,), 0), ((2,), 1), ((3,), 7), ((6,), 8), ((16,), 4), ((27,), 111)],
)
def collatz_steps(n: int) -> int:
    # no step done yet | step counter | start with zero steps
    steps = 0
    # until the sequence reaches 1 | repeat while {n} is not one | stop when {n} becomes 1
    while n != 1:
        if n % 2 == 0:
            # even numbers are halved | divide an even number by two | take half of {n}
            n //= 2
        else:
            # odd numbers become 3 {n} + 1 | triple an odd number and add one | apply the odd rule
            n = 3 * n + 1
        steps += 1
    return steps


@family(
    titles=[
        "sum of even fibonacci numbers up to a limit",
        "add the even terms of the fibonacci sequence that do not exceed {limit}",
        "project euler 2: total of even valued fibonacci terms not larger than {limit}",
        "walk through the fibonacci numbers up to {limit} and sum those divisible by two",
        "find the sum of all fibonacci numbers at most {limit} which are even",
        "even fibonacci numbers: their total up to and including {limit}",
        "what is the sum of the even members of the fibonacci series below or equal to {limit}",
        "generate fibonacci terms until {limit} and accumulate only the even ones",
    ],
    cases=[((0,), 0), ((1,), 0), ((2,), 2), ((8,), 10), ((33,), 10), ((100,), 44), ((4000000,), 4613732)],
)
def sum_of_even_fibonacci(limit: int) -> int:
    # first two fibonacci numbers | start the sequence with 1 and 2 | the terms {a} and {b} open the series
    a, b = 1, 2
    total = 0
    # while the term is within the limit | loop over terms up to {limit} | stop once {a} exceeds {limit}
    while a <= limit:
        # keep even terms only | add the term when it is even | if two divides {a}
        if a % 2 == 0:
            total += a
        # advance to the next pair of terms | the next term is the sum of both | move the sequence forward
        a, b = b, a + b
    return total


@family(
    titles=[
        "classify a triangle by its side lengths",
        "given three sides, tell if the triangle is equilateral, isosceles, scalene or invalid",
        "type of the triangle with sides {a}, {b} and {c}",
        "name the kind of triangle formed by the lengths {a}, {b}, {c}",
        "are three lengths an equilateral, isosceles or scalene triangle, or no triangle at all",
        "triangle classification from integer sides with a validity check",
        "return the word that describes the triangle {a}, {b}, {c} by equality of its sides",
        "determine which sort of triangle the sides {a}, {b}, {c} make",
    ],
    cases=[
        ((3, 3, 3), "equilateral"),
        ((3, 3, 5), "isosceles"),
        ((5, 3, 3), "isosceles"),
        ((3, 4, 5), "scalene"),
        ((1, 2, 3), "invalid"),
        ((1, 1, 5), "invalid"),
    ],
)
def triangle_type(a: int, b: int, c: int) -> str:
    # two sides must exceed the third | the triangle inequality fails | no triangle with such lengths
    if a + b <= c or a + c <= b or b + c <= a:
        return "invalid"
    # all sides are the same | three equal sides | when {a}, {b} and {c} agree
    if a == b and b == c:
        return "equilateral"
    # two sides are the same | exactly one pair of equal sides | check for a pair of equal lengths
    if a == b or b == c or c == a:
        return "isosceles"
    return "scalene"


@family(
    titles=[
        "twice the area of a polygon with the shoelace formula",
        "double of a polygon area from its integer vertices",
        "given the x coordinates {xs} and y coordinates {ys} of a simple polygon, return two times its area",
        "use the shoelace method to compute the doubled area of a polygon",
        "polygon area multiplied by two, vertices listed in order in {xs} and {ys}",
        "sum the cross products of neighbouring vertices to get twice the enclosed area",
        "surveyor formula: doubled area of a shape whose corners have coordinates {xs} and {ys}",
        "find two times the area enclosed by the points with coordinates {xs} and {ys}",
    ],
    cases=[
        (([0, 4, 4, 0], [0, 0, 3, 3]), 24),
        (([0, 0, 4], [0, 3, 0]), 12),
        (([0, 1, 2], [0, 1, 2]), 0),
        (([0, 2, 2, 1, 0], [0, 0, 2, 3, 2]), 10),
    ],
)
def doubled_polygon_area(xs: list[int], ys: list[int]) -> int:
    total = 0
    n = len(xs)
    # visit every edge | for each vertex of the polygon | loop over all corners
    for i in range(n):
        # the next vertex wraps around | index of the following corner | after the last comes the first
        j = (i + 1) % n
        # add the cross product of the edge | shoelace term of {i} and {j} | cross product of two neighbours
        total += xs[i] * ys[j] - xs[j] * ys[i]
    # the sign depends on the orientation | drop the sign | area is never negative
    return abs(total)


@family(
    titles=[
        "count the integer points inside or on a circle",
        "how many lattice points lie within distance {r} of the origin",
        "gauss circle problem for radius {r}",
        "number of points with integer coordinates in the disc of radius {r}",
        "given a radius {r}, count pairs x, y with x * x + y * y at most {r} squared",
        "find the number of grid points covered by a circle centred at the origin",
        "lattice points in a disc of integer radius",
        "brute force count of integer points whose distance from 0, 0 is not more than {r}",
    ],
    cases=[((0,), 1), ((1,), 5), ((2,), 13), ((3,), 29), ((5,), 81)],
)
def lattice_points_in_circle(r: int) -> int:
    # no point counted yet | counter of points | start at 0
    count = 0
    # every column of the bounding square | let {x} go from -{r} to {r} | loop over possible x values
    for x in range(-r, r + 1):
        # every row of the bounding square | let {y} go from -{r} to {r} | loop over possible y values
        for y in range(-r, r + 1):
            # the point is in the disc | compare squared distance with {r} squared | inside or on the circle
            if x * x + y * y <= r * r:
                count += 1
    return count
