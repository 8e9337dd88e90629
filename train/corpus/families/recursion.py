"""Problems solved by a function that calls itself."""

# ruff: noqa: F821 - a hole is a name without a value here
# mypy: disable-error-code="name-defined"

from ..definition import Long, family


@family(
    titles=[
        "factorial of {n} by recursion",
        "product of the numbers 1 to {n}, computed recursively",
        "recursive factorial function",
        "compute {n}! with a function that calls itself",
        "number of ways to arrange {n} distinct objects, as {n} times the ways for {n} - 1",
        "find the factorial of a non negative integer without a loop",
        "multiply all positive integers up to {n} using recursion",
        "given {n}, return {n} factorial recursively",
    ],
    cases=[((0,), 1), ((1,), 1), ((5,), 120), ((10,), 3628800), ((15,), 1307674368000)],
)
def factorial(n: int) -> Long:
    # factorial of 0 and 1 is 1 | base case | stop at one
    if n <= 1:
        return 1
    # solve the smaller problem | factorial of {n} - 1 | recursive call for the number before
    smaller = factorial(n - 1)
    # multiply by {n} | combine with {n} | the result is {n} times the smaller one
    return n * smaller


@family(
    titles=[
        "fast power by recursive halving of the exponent",
        "raise {base} to {exponent} with recursion in logarithmic time",
        "recursive exponentiation by squaring",
        "compute {base} ^ {exponent} from the square of {base} ^ ({exponent} / 2)",
        "divide and conquer power function",
        "find the {exponent} th power of {base}, halving the exponent at each call",
        "power of an integer with few multiplications, recursively",
        "calculate {base} to the {exponent} by squaring half powers",
    ],
    cases=[((2, 10), 1024), ((3, 0), 1), ((7, 1), 7), ((2, 40), 1099511627776), ((-2, 3), -8), ((0, 5), 0)],
)
def fast_power(base: int, exponent: int) -> Long:
    # anything to the power 0 is 1 | base case: exponent zero | stop when {exponent} is 0
    if exponent == 0:
        return 1
    # power with half the exponent | recursive call for half of {exponent} | solve the half sized problem
    half = fast_power(base, exponent // 2)
    # even exponent: square the half power | no factor is missing | {exponent} is even
    if exponent % 2 == 0:
        return half * half
    # odd exponent: one more factor | multiply once more by {base} | include the factor lost by rounding
    return half * half * base


@family(
    titles=[
        "ackermann function",
        "evaluate the ackermann peter function at {m} and {n}",
        "compute A({m}, {n}) for the ackermann function",
        "the famous fast growing doubly recursive function of {m} and {n}",
        "implement the recursive definition of ackermann for two non negative integers",
        "find the ackermann number for small {m} and {n}",
        "two argument ackermann recursion",
        "value of ackermann for arguments {m}, {n}",
    ],
    cases=[((0, 0), 1), ((0, 4), 5), ((1, 5), 7), ((2, 0), 3), ((2, 3), 9), ((3, 3), 61)],
)
def ackermann(m: int, n: int) -> int:
    # first rule: successor | when {m} is zero add one to {n} | base case
    if m == 0:
        return n + 1
    # second rule: lower {m} and use 1 | when {n} is zero | restart with {m} - 1 and one
    if n == 0:
        return ackermann(m - 1, 1)
    # inner call with a smaller {n} | value for {m} and {n} - 1 | evaluate the nested argument first
    inner = ackermann(m, n - 1)
    # outer call with a smaller {m} | feed the value into the next call | apply the function for {m} - 1
    return ackermann(m - 1, inner)


@family(
    titles=[
        "number of moves to solve the tower of hanoi with {n} discs",
        "tower of hanoi: count the moves",
        "how many steps are needed to transfer {n} hanoi discs to another peg",
        "recursively count disc moves in the hanoi puzzle",
        "minimum moves for the towers of hanoi",
        "given the number of discs {n}, return the length of the hanoi solution",
        "move {n} discs between three pegs: how many single moves",
        "hanoi move counter by recursion on {n}",
    ],
    cases=[((0,), 0), ((1,), 1), ((2,), 3), ((3,), 7), ((10,), 1023)],
)
def hanoi_moves(n: int) -> int:
    # no disc, no move | nothing to do without discs | base case: empty tower
    if n == 0:
        return 0
    # move the smaller discs to the spare peg | clear the largest disc | free the bottom disc
    moves = hanoi_moves(n - 1)
    # move the largest disc | one move for the bottom disc | put the biggest disc on the target
    moves += 1
    # bring the smaller discs on top of it | move the rest onto the largest | transfer the others again
    moves += hanoi_moves(n - 1)
    return moves


@family(
    titles=[
        "sum of digits by recursion",
        "add the decimal digits of {n} recursively",
        "recursive digit sum of an integer",
        "compute the cross sum of {n} with a function that calls itself",
        "total of all digits of a number without a loop",
        "peel off the last digit of {n} and add the digit sum of the rest",
        "find what the digits of {n} add up to using recursion",
        "given {n}, return the recursive total of its digits",
    ],
    cases=[((0,), 0), ((5,), 5), ((10,), 1), ((123,), 6), ((99999,), 45), ((1002003,), 6)],
)
def digit_sum_recursive(n: int) -> int:
    # one digit is its own sum | base case: single digit | stop when {n} is below 10
    if n < 10:
        return n
    # the last digit | remainder by ten | unit digit of {n}
    last = n % 10
    # sum of the other digits | recursive call without the last digit | digit sum of the rest
    rest = digit_sum_recursive(n // 10)
    return last + rest


@family(
    titles=[
        "binomial coefficient with pascal's rule",
        "number of ways to choose {k} items out of {n}, recursively",
        "n choose k by recursion",
        "compute the entry {k} of row {n} in pascal's triangle with recursive calls",
        "how many subsets of size {k} does a set with {n} elements have",
        "recursive computation of combinations of {n} things taken {k} at a time",
        "count the committees of {k} people that {n} people can form",
        "calculate C({n}, {k}) as the sum of two smaller coefficients",
    ],
    cases=[((0, 0), 1), ((5, 2), 10), ((5, 0), 1), ((5, 5), 1), ((3, 4), 0), ((10, 3), 120)],
)
def binomial_coefficient(n: int, k: int) -> int:
    # cannot choose more than there are | {k} is too large | no such subset
    if k > n:
        return 0
    # one way to choose nothing or everything | border of the triangle | base cases
    if k == 0 or k == n:
        return 1
    # the last item is chosen | subsets that contain the last item | choose {k} - 1 from the rest
    chosen = binomial_coefficient(n - 1, k - 1)
    # the last item is left out | subsets without the last item | choose all {k} from the rest
    skipped = binomial_coefficient(n - 1, k)
    return chosen + skipped


@family(
    titles=[
        "term {n} of the sequence 0, 1 where each term is {K} times the previous one plus the one before",
        "recursive sequence f(n) = {K} * f(n - 1) + f(n - 2)",
        "fibonacci like numbers in which the previous term is multiplied by {K}",
        "compute the {n} th number of the recurrence with factor {K}, starting from 0 and 1",
        "generalised fibonacci number: {K} times the last term plus the second last",
        "find element {n} of the {K} fibonacci sequence by recursion",
        "starting with 0 and 1, multiply the last term by {K} and add the term before it: what is term {n}",
        "metallic mean sequence with multiplier {K}, value at index {n}",
    ],
    cases=[((0,), 0), ((1,), 1), ((2,), 2), ((3,), 5), ((5,), 29), ((10,), 2378)],
    holes={"K": (2, 3, 4, 5)},
)
def metallic_number(n: int) -> int:
    # the first two terms are 0 and 1 | base cases | stop at index 0 or 1
    if n < 2:
        return n
    # previous term | term with index {n} - 1 | recursive call one step back
    previous = metallic_number(n - 1)
    # term before the previous one | term with index {n} - 2 | recursive call two steps back
    older = metallic_number(n - 2)
    # apply the recurrence | {K} times the previous term plus the older one | combine both terms
    return K * previous + older


@family(
    titles=[
        "check a palindrome with recursion",
        "does {s} read the same in both directions, tested recursively",
        "recursive palindrome test for a string",
        "compare the outer characters of {s} and recurse on the inside",
        "return true when the string {s} is a palindrome, using a function that calls itself",
        "is the text {s} symmetric, without loops",
        "strip equal first and last letters of {s} until nothing is left to compare",
        "palindrome or not: a recursive solution",
    ],
    cases=[(("",), True), (("a",), True), (("ab",), False), (("racecar",), True), (("abca",), False), (("noon",), True)],
)
def is_palindrome_recursive(s: str) -> bool:
    n = len(s)
    # short strings are palindromes | base case: at most one character | nothing left to compare
    if n < 2:
        return True
    # first and last character differ | the ends do not match | outer characters are unequal
    if s[0] != s[n - 1]:
        return False
    # check the inner part | recursive call without both ends | continue with the characters in between
    return is_palindrome_recursive(s[1 : n - 1])


@family(
    titles=[
        "count the subsets with a given sum by recursion",
        "how many subsets of {arr} from position {index} on add up to {target}",
        "number of ways to pick elements of {arr} starting at {index} with total {target}",
        "include or exclude each element to count subsets whose sum is {target}",
        "recursive subset sum counter",
        "given {arr}, the start {index} and {target}, count the selections that reach the target exactly",
        "take or skip every number from {index} onward: count choices with sum {target}",
        "in how many ways can numbers of {arr} after {index} be chosen to make {target}",
    ],
    cases=[
        (([], 0, 0), 1),
        (([1, 2, 3], 0, 3), 2),
        (([1, 2, 3], 1, 3), 1),
        (([5], 0, 4), 0),
        (([1, 1, 1], 0, 2), 3),
        (([2, -2, 4], 0, 4), 2),
    ],
)
def count_subsets_with_sum(arr: list[int], index: int, target: int) -> int:
    # all elements were decided | end of the array | base case
    if index == len(arr):
        # the subset fits if nothing is missing | one subset when {target} is reached | compare the rest with 0
        return 1 if target == 0 else 0
    # take the element | subsets that contain the current number | lower the target by the element
    taken = count_subsets_with_sum(arr, index + 1, target - arr[index])
    # leave the element out | subsets without the current number | keep the target
    skipped = count_subsets_with_sum(arr, index + 1, target)
    return taken + skipped


@family(
    titles=[
        "delannoy number",
        "paths from a corner to cell {m}, {n} with steps right, up and diagonal",
        "count king walks from 0, 0 to {m}, {n} that never go back",
        "number of lattice paths with east, north and northeast steps",
        "recursively count the ways to reach ({m}, {n}) when diagonal moves are allowed",
        "find the delannoy number for {m} and {n}",
        "grid routes of size {m} by {n} using three kinds of moves: horizontal, vertical, diagonal",
        "sum of three neighbours recursion: ways through a grid including diagonals",
    ],
    cases=[((0, 0), 1), ((0, 5), 1), ((1, 1), 3), ((2, 2), 13), ((2, 1), 5), ((3, 3), 63)],
)
def delannoy_number(m: int, n: int) -> int:
    # only one straight path on the border | base case: a coordinate is zero | one way along an edge
    if m == 0 or n == 0:
        return 1
    # last step was horizontal | come from the left | paths to the left neighbour
    result = delannoy_number(m - 1, n)
    # last step was vertical | come from below | paths to the lower neighbour
    result += delannoy_number(m, n - 1)
    # last step was diagonal | come from the diagonal neighbour | paths that end with a diagonal step
    result += delannoy_number(m - 1, n - 1)
    return result


@family(
    titles=[
        "josephus problem where every {K} th person is eliminated",
        "{n} people stand in a circle and each {K} th one leaves: who survives",
        "find the safe position, counted from 1, for {n} people and step {K}",
        "survivor of the josephus circle with step {K}",
        "last remaining person when counting out by {K} among {n}",
        "recursive josephus solution for steps of {K}",
        "given {n} players numbered from 1, remove every {K} th until one is left",
        "which place wins the counting game with {n} children and count {K}",
    ],
    cases=[((1,), 1), ((2,), 1), ((5,), 3), ((6,), 5), ((7,), 7), ((41,), 19)],
    holes={"K": (2, 3, 4, 5, 7)},
)
def josephus_survivor(n: int) -> int:
    # a single person survives | base case: one person | nobody else is left
    if n == 1:
        return 1
    # survivor among one person less | solve the circle of {n} - 1 people | recursive call for a smaller circle
    previous = josephus_survivor(n - 1)
    # the circle starts {K} places further | shift by {K} and wrap around | renumber the positions
    position = (previous + K - 1) % n
    # positions are counted from 1 | back to one based numbering | convert from zero based
    return position + 1


@family(
    titles=[
        "number of partitions of {n} with parts up to {largest}",
        "count the ways to write {n} as a sum of positive integers not above {largest}",
        "integer partitions by recursion",
        "in how many ways can {n} be split into summands of at most {largest}, ignoring order",
        "count unordered sums that give {n}, each term no bigger than {largest}",
        "recursive partition counter with a bound on the biggest part",
        "partition function: parts of {n} limited by {largest}",
        "how many multisets of numbers from 1 to {largest} have total {n}",
    ],
    cases=[((0, 3), 1), ((5, 5), 7), ((5, 2), 3), ((4, 1), 1), ((3, 0), 0), ((10, 10), 42)],
)
def count_partitions(n: int, largest: int) -> int:
    # the empty sum | nothing left to split | one way to write zero
    if n == 0:
        return 1
    # overshoot or no part allowed | impossible case | too much taken or no numbers left
    if n < 0 or largest == 0:
        return 0
    # use a part of size {largest} | partitions that contain {largest} | subtract the biggest part
    used = count_partitions(n - largest, largest)
    # use only smaller parts | partitions without {largest} | lower the bound
    unused = count_partitions(n, largest - 1)
    return used + unused


@family(
    titles=[
        "stirling number of the second kind",
        "ways to divide {n} distinct objects into {k} non empty groups",
        "count the partitions of a set with {n} elements into {k} blocks",
        "recursive computation of stirling set numbers for {n} and {k}",
        "in how many ways can {n} students form {k} unlabelled teams",
        "number of ways to put {n} different balls in {k} equal boxes, no box empty",
        "set partitions of size {n} with exactly {k} parts",
        "evaluate S({n}, {k}), the second stirling triangle",
    ],
    cases=[((0, 0), 1), ((3, 0), 0), ((2, 3), 0), ((4, 2), 7), ((5, 3), 25), ((6, 6), 1)],
)
def stirling_second(n: int, k: int) -> int:
    # as many groups as objects | each object has its own group | one way if both are equal
    if n == k:
        return 1
    # no groups or too many groups | impossible split | zero ways
    if k == 0 or k > n:
        return 0
    # the last object joins an existing group | one of {k} groups takes the object | {k} choices for the last one
    joined = k * stirling_second(n - 1, k)
    # the last object is alone | open a new group for it | it forms its own group
    alone = stirling_second(n - 1, k - 1)
    return joined + alone


@family(
    titles=[
        "symbol number {k} in row {n} of the grammar where 0 becomes 01 and 1 becomes 10",
        "k th symbol in grammar",
        "row 1 is 0 and each row replaces 0 by 01 and 1 by 10: find entry {k} of row {n}",
        "thue morse rows: value at position {k} of the {n} th row, both counted from 1",
        "recursively find a symbol of row {n} from its parent in the row above",
        "which bit stands at place {k} after {n} - 1 rounds of the rule 0 to 01, 1 to 10",
        "given {n} and {k}, return the {k} th symbol of row {n} in a doubling table of zeros and ones",
        "every 0 turns into 01 and every 1 into 10 from one line to the next: symbol {k} in line {n}",
    ],
    cases=[((1, 1), 0), ((2, 1), 0), ((2, 2), 1), ((3, 3), 1), ((4, 5), 1), ((4, 8), 1), ((4, 7), 0)],
)
def grammar_symbol(n: int, k: int) -> int:
    # the first row is a single 0 | base case: row one | no row above
    if n == 1:
        return 0
    # symbol it comes from | entry in the row above | recursive call for the parent
    parent = grammar_symbol(n - 1, (k + 1) // 2)
    # the first symbol of a pair equals the parent | odd positions copy it | left child keeps the value
    if k % 2 == 1:
        return parent
    # the second symbol is the opposite | even positions flip it | right child is inverted
    return 1 - parent


@family(
    titles=[
        "largest element of an array by recursion",
        "recursive maximum of the first {n} elements of {arr}",
        "find the biggest value in {arr} without a loop",
        "compare the last element with the maximum of the others, recursively",
        "function that calls itself to get the maximum of {arr}",
        "given {arr} and its length {n}, return the greatest number using recursion",
        "array maximum, solved by shrinking the array from the end",
        "what is the highest among the first {n} numbers of {arr}, recursively",
    ],
    cases=[(([4], 1), 4), (([1, 5, 3], 3), 5), (([-7, -2, -9], 3), -2), (([9, 1, 8], 3), 9), (([1, 2, 3, 10], 3), 3)],
)
def array_maximum_recursive(arr: list[int], n: int) -> int:
    # a single element is the maximum | base case: one element | only the first number is left
    if n == 1:
        return arr[0]
    # maximum of the elements before the last | recursive call for {n} - 1 elements | best of the shorter array
    best = array_maximum_recursive(arr, n - 1)
    # the last element is larger | compare with the last number | a new maximum at the end
    if arr[n - 1] > best:
        best = arr[n - 1]
    return best


@family(
    titles=[
        "remove adjacent duplicate characters by recursion",
        "collapse each run of equal letters in {s} to a single letter, recursively",
        "recursively shorten repeated neighbours: aabbb becomes ab",
        "keep only one of several equal characters in a row",
        "given the string {s}, drop every character that is the same as the one after it, without loops",
        "squeeze runs of identical characters using a function that calls itself",
        "recursive removal of consecutive duplicates from {s}",
        "what is left of {s} when repeated letters standing side by side are merged",
    ],
    cases=[(("",), ""), (("a",), "a"), (("aabbb",), "ab"), (("abab",), "abab"), (("xxyxx",), "xyx"), (("zzzz",), "z")],
)
def collapse_runs(s: str) -> str:
    # too short for a duplicate | base case: at most one character | nothing to remove
    if len(s) < 2:
        return s
    # solve the rest of the string | recursive call without the first character | collapse the tail
    rest = collapse_runs(s[1:])
    # the first two characters are equal | skip the first of a pair | the next character is the same
    if s[0] == s[1]:
        return rest
    # keep the first character | it differs from its neighbour | put it in front of the rest
    return s[0] + rest


@family(
    titles=[
        "number of derangements",
        "permutations of {n} elements in which no element stays in place",
        "count the ways to return {n} hats so that nobody gets their own hat",
        "subfactorial of {n} by recursion",
        "how many arrangements of {n} letters put every letter in a wrong envelope",
        "derangement count from the two previous values",
        "given {n}, find how many shuffles leave nothing at its original position",
        "recursive formula for permutations of {n} items without fixed points",
    ],
    cases=[((0,), 1), ((1,), 0), ((2,), 1), ((3,), 2), ((4,), 9), ((6,), 265)],
)
def count_derangements(n: int) -> int:
    # one way to arrange nothing | empty permutation | base case zero
    if n == 0:
        return 1
    # a single element cannot move | one element stays in place | base case one
    if n == 1:
        return 0
    # solve both smaller problems | derangements of {n} - 1 and {n} - 2 elements | add the two previous counts
    smaller = count_derangements(n - 1) + count_derangements(n - 2)
    # the first element has {n} - 1 new places | multiply by {n} - 1 | choose the target of the first element
    return (n - 1) * smaller


@family(
    titles=[
        "replace every digit 0 of a number by {K}",
        "change all zeros in {n} to {K}",
        "recursively substitute {K} for each zero digit of a positive integer",
        "given {n}, return it with its zero digits turned into {K}",
        "swap 0 for {K} in the decimal form of {n}",
        "rewrite {n} so that {K} stands wherever there was a 0",
        "convert the zeros of an integer into {K} using recursion",
        "number {n} after writing {K} in place of its zeros",
    ],
    cases=[((7,), 7), ((10,), 15), ((100,), 155), ((10203,), 15253), ((998,), 998), ((1000000001,), 1555555551)],
    holes={"K": (5, 1, 2, 3, 4, 6, 7, 8, 9)},
)
def replace_zeros(n: int) -> int:
    # no digits left | base case: the number is used up | stop at zero
    if n == 0:
        return 0
    # look at the last digit | remainder by ten | unit digit of {n}
    digit = n % 10
    # a zero becomes {K} | exchange the digit 0 | when the digit is zero use {K}
    if digit == 0:
        digit = K
    # treat the other digits and append this one | recursive call for the rest of {n} | rebuild the number
    return replace_zeros(n // 10) * 10 + digit
