"""Problem families solved by dynamic programming: counting ways, best sums, subsequences and tables over two strings."""

# ruff: noqa: F821 - a hole is a name without a value here
# mypy: disable-error-code="name-defined"

from ..definition import family


@family(
    titles=[
        "number of ways to climb {n} stairs taking 1 or {K} steps at a time",
        "count the distinct ways to reach the top of a staircase with jumps of 1 and {K}",
        "climbing stairs: {n} steps, each move goes up one step or {K} steps",
        "in how many orders can moves of size 1 and {K} add up to {n}",
        "ways to write {n} as an ordered sum of ones and {K}s",
        "you may climb one or {K} stairs per move, return how many ways lead to stair {n}",
        "given {n} stairs, find how many sequences of 1 and {K} step moves exist",
        "how many ways are there to get up a staircase if only 1 or {K} stairs can be taken",
    ],
    cases=[((0,), 1), ((1,), 1), ((2,), 2), ((5,), 8), ((10,), 89)],
    holes={"K": (2, 3, 4, 5)},
)
def climb_stairs(n: int) -> int:
    # number of ways for each stair | table of ways from stair 0 to {n} | {ways} holds the count for every height
    ways = [0] * (n + 1)
    # one way to stay at the bottom | the start can be reached in one way | base case
    ways[0] = 1
    for i in range(1, n + 1):
        # come from the stair below | a single step | ways that end with a move of 1
        ways[i] = ways[i - 1]
        # or jump over {K} stairs | a move of {K} if it fits | add the ways that end with a move of {K}
        if i >= K:
            ways[i] += ways[i - K]
    return ways[n]


@family(
    titles=[
        "coin change: count the ways to make {amount} with {coins}",
        "number of combinations of coins that add up to a given amount",
        "in how many ways can {amount} be paid when every coin may be used any number of times",
        "count the different sets of coins with a total of {amount}",
        "given coin values, find how many combinations give the sum {amount}, order ignored",
        "how many possibilities are there to change an amount of money",
        "ways to form a sum from unlimited coins, counted without regard to order",
        "return the number of ways to pay {amount} using the given denominations",
    ],
    cases=[(([1, 2, 5], 5), 4), (([2], 3), 0), (([10], 10), 1), (([1, 2, 3], 4), 4), (([3, 5], 0), 1)],
)
def count_coin_change_ways(coins: list[int], amount: int) -> int:
    # ways to reach every sum up to {amount} | one entry for each smaller amount | table of combinations
    ways = [0] * (amount + 1)
    # the empty choice gives zero | there is one way to pay nothing | base case
    ways[0] = 1
    # bring in the coins one after the other | take each coin in turn so that order does not count | consider every denomination
    for coin in coins:
        for total in range(coin, amount + 1):
            # use the coin once more | add the ways that end with this coin | extend the smaller sum by the coin
            ways[total] += ways[total - coin]
    return ways[amount]


@family(
    titles=[
        "fewest coins needed to make {amount}",
        "minimum number of coins that add up to a given amount, or -1",
        "coin change: pay {amount} with as few coins as possible",
        "smallest count of coins from {coins} whose sum is {amount}",
        "given unlimited coins, find the least number needed for a sum",
        "return how many coins the cheapest change of {amount} takes, -1 if it cannot be paid",
        "make change using the minimum amount of coins",
        "what is the lowest number of coins with a total value of {amount}",
    ],
    cases=[(([1, 2, 5], 11), 3), (([2], 3), -1), (([1], 0), 0), (([1, 3, 4], 6), 2), (([5, 10], 20), 2)],
)
def minimum_coins(coins: list[int], amount: int) -> int:
    # fewest coins for every sum | table of minimal coin counts | {fewest} holds the best count for each amount
    fewest = [0] * (amount + 1)
    for i in range(1, amount + 1):
        # more coins than any solution needs | mark the sum as not reachable yet | a value that stands for infinity
        fewest[i] = amount + 1
        # try each coin as the last one | go through the coins that fit | choose the best last coin
        for coin in coins:
            if coin <= i:
                fewest[i] = min(fewest[i], fewest[i - coin] + 1)
    # the amount cannot be made | no combination was found | report -1 when it is impossible
    if fewest[amount] > amount:
        return -1
    return fewest[amount]


@family(
    titles=[
        "0/1 knapsack: best total value with items of {weights} and {values} within {capacity}",
        "greatest value that fits in a bag of limited weight when each item is taken at most once",
        "choose items so that their weight stays within {capacity} and their value is maximal",
        "maximum value of a knapsack with given item weights and values",
        "given weights and values, pack a bag of size {capacity} as valuably as possible",
        "solve the knapsack problem with a one dimensional table",
        "which highest value can be carried without exceeding the weight {capacity}",
        "return the most profit from a selection of items under a weight limit",
    ],
    cases=[
        (([1, 3, 4, 5], [1, 4, 5, 7], 7), 9),
        (([10, 20, 30], [60, 100, 120], 50), 220),
        (([5], [10], 4), 0),
        (([2, 2], [3, 4], 0), 0),
        (([1, 2, 3], [6, 10, 12], 5), 22),
    ],
)
def knapsack_max_value(weights: list[int], values: list[int], capacity: int) -> int:
    # best value for every weight limit | one entry per capacity | table of the best values so far
    best = [0] * (capacity + 1)
    # consider the items one by one | add one item at a time | go through all items
    for i in range(len(weights)):
        # from large to small so that an item is used once | go downwards to not take the item twice | limits where the item fits
        for limit in range(capacity, weights[i] - 1, -1):
            # leave the item out or take it | compare both choices | keep the better of with and without the item
            best[limit] = max(best[limit], best[limit - weights[i]] + values[i])
    return best[capacity]


@family(
    titles=[
        "length of the longest common subsequence of {s} and {t}",
        "how many letters can two strings share in the same order",
        "lcs of two strings by dynamic programming, only its length",
        "find the size of the greatest sequence of characters contained in both words",
        "longest common subsequence: return the number of its characters",
        "given two texts, compute how long their longest shared subsequence is",
        "what is the maximum count of characters that {s} and {t} have in common in order",
        "measure the longest string that is a subsequence of both inputs",
    ],
    cases=[(("abcde", "ace"), 3), (("abc", "abc"), 3), (("abc", "def"), 0), (("", "abc"), 0), (("AGGTAB", "GXTXAYB"), 4)],
)
def longest_common_subsequence(s: str, t: str) -> int:
    # table over the prefixes of both strings | one cell for each pair of prefixes | lengths for all pairs of beginnings
    dp = [[0] * (len(t) + 1) for _ in range(len(s) + 1)]
    for i in range(1, len(s) + 1):
        for j in range(1, len(t) + 1):
            # equal characters extend the subsequence | the last letters match | one more letter is shared
            if s[i - 1] == t[j - 1]:
                dp[i][j] = dp[i - 1][j - 1] + 1
            else:
                # otherwise drop a letter of one string | take the better of the two shorter prefixes | leave out one of the letters
                dp[i][j] = max(dp[i - 1][j], dp[i][j - 1])
    # value for the complete strings | the last cell is the answer | result for both whole words
    return dp[len(s)][len(t)]


@family(
    titles=[
        "length of the longest strictly increasing subsequence of {arr}",
        "how many elements can be kept so that the rest of the array rises",
        "lis of an integer array in quadratic time",
        "find the size of the longest ascending chain of elements in their given order",
        "longest increasing subsequence, return its length",
        "given numbers, delete as few as possible so that they grow strictly and count what is left",
        "maximum length of a growing subsequence in {arr}",
        "what is the largest number of elements in increasing order that an array contains",
    ],
    cases=[(([10, 9, 2, 5, 3, 7, 101, 18],), 4), (([0, 1, 0, 3, 2, 3],), 4), (([7, 7, 7],), 1), (([],), 0), (([5, 4, 3],), 1)],
)
def longest_increasing_subsequence(arr: list[int]) -> int:
    # best length that ends at each index | table of lengths | length of the best chain for every last element
    lengths = [0] * len(arr)
    longest = 0
    for i in range(len(arr)):
        # the element alone is a chain of length one | every element can stand alone | begin with the number itself
        lengths[i] = 1
        # append it to a chain with a smaller end | look at all smaller elements before it | extend the best earlier chain
        for j in range(i):
            if arr[j] < arr[i]:
                lengths[i] = max(lengths[i], lengths[j] + 1)
        # keep the greatest length | update the answer | compare with the best chain so far
        longest = max(longest, lengths[i])
    return longest


@family(
    titles=[
        "edit distance between {s} and {t}",
        "minimum number of insertions, deletions and replacements that turn {s} into {t}",
        "levenshtein distance of two words",
        "how many single character edits change one string into another",
        "smallest number of edit operations between two texts",
        "given two words, compute their levenshtein distance with a table",
        "cheapest way to transform a word by inserting, removing or replacing letters",
        "find the least count of edits that makes two strings equal",
    ],
    cases=[(("horse", "ros"), 3), (("kitten", "sitting"), 3), (("", "abc"), 3), (("same", "same"), 0), (("", ""), 0), (("a", "b"), 1)],
)
def edit_distance(s: str, t: str) -> int:
    # distances between all prefixes | one cell per pair of prefixes | table over both words
    dp = [[0] * (len(t) + 1) for _ in range(len(s) + 1)]
    for i in range(len(s) + 1):
        for j in range(len(t) + 1):
            # an empty prefix needs only insertions or deletions | one of the prefixes is empty | base case of an empty word
            if i == 0 or j == 0:
                dp[i][j] = i + j
            # equal letters cost nothing | no edit is needed for the same character | the last characters agree
            elif s[i - 1] == t[j - 1]:
                dp[i][j] = dp[i - 1][j - 1]
            else:
                # one edit after the cheapest of delete, insert and replace | best of the three operations | pay one edit operation
                dp[i][j] = 1 + min(dp[i - 1][j], dp[i][j - 1], dp[i - 1][j - 1])
    return dp[len(s)][len(t)]


@family(
    titles=[
        "house robber: most money from {arr} without robbing two neighbours",
        "maximum sum of elements of which no two are adjacent",
        "choose numbers from {arr} that do not stand next to each other so that their sum is greatest",
        "how much can a thief take if adjacent houses must not both be visited",
        "largest total of non adjacent values in an array",
        "given the money in each house, find the best loot without touching neighbouring houses",
        "pick values from a row, never two in a row, with maximal sum",
        "return the highest amount that can be robbed from a street of houses",
    ],
    cases=[(([1, 2, 3, 1],), 4), (([2, 7, 9, 3, 1],), 12), (([],), 0), (([5],), 5), (([2, 1, 1, 2],), 4)],
)
def rob_houses(arr: list[int]) -> int:
    # best sums up to the house before last and the last house | nothing has been taken yet | both best sums begin at zero
    previous, current = 0, 0
    for money in arr:
        # skip this house or add it to the sum before last | rob the house or leave it | take the better choice
        best = max(current, previous + money)
        # move on by one house | shift both sums | remember the last two results
        previous = current
        current = best
    return current


@family(
    titles=[
        "maximum subarray sum of {arr}",
        "greatest sum of consecutive elements in an array",
        "kadane algorithm for the largest sum of a contiguous part",
        "find the contiguous block of numbers with the highest total and return that total",
        "given an array with negative numbers, compute its best contiguous sum",
        "what is the largest sum that a non empty subarray of {arr} can have",
        "maximal total over all runs of neighbouring elements",
        "largest sum of a slice of {arr}",
    ],
    cases=[(([-2, 1, -3, 4, -1, 2, 1, -5, 4],), 6), (([1],), 1), (([5, 4, -1, 7, 8],), 23), (([-3, -1, -2],), -1), (([0, 0],), 0)],
)
def max_subarray_sum(arr: list[int]) -> int:
    # the first element is the best sum so far | start with the first number | only the first element has been seen
    best = arr[0]
    # best sum that ends at the current element | sum of the running subarray | no running sum yet
    current = 0
    for x in arr:
        # extend the run or begin anew | either append the number or start again with it | a negative run is dropped
        current = max(current + x, x)
        # keep the larger sum | update the answer | compare with the greatest sum
        best = max(best, current)
    return best


@family(
    titles=[
        "number of paths from the top left to the bottom right of a {rows} by {cols} grid",
        "unique paths of a robot that moves only right or down",
        "in how many ways can one cross a grid with {rows} rows and {cols} columns going right and down",
        "count the monotone lattice paths through a rectangular grid",
        "grid traveler: how many routes lead to the opposite corner",
        "given the size of a grid, count all routes that use only right and down moves",
        "how many shortest ways lead from one corner of a board to the opposite one",
        "return the count of different right and down walks through a grid",
    ],
    cases=[((3, 7), 28), ((3, 2), 3), ((1, 1), 1), ((1, 5), 1), ((3, 3), 6), ((10, 10), 48620)],
)
def count_grid_paths(rows: int, cols: int) -> int:
    # paths that lead to each cell | table with one count per cell | {paths} counts the ways into every cell
    paths = [[0] * cols for _ in range(rows)]
    for i in range(rows):
        for j in range(cols):
            # the border can be reached in one way | a single path along the edge | only one way in the first row and column
            if i == 0 or j == 0:
                paths[i][j] = 1
            else:
                # come from above or from the left | add the paths of both neighbours | sum of the upper and the left cell
                paths[i][j] = paths[i - 1][j] + paths[i][j - 1]
    return paths[rows - 1][cols - 1]


@family(
    titles=[
        "minimum path sum in {grid} from the top left to the bottom right",
        "cheapest way through a cost grid with right and down moves",
        "find the path through a grid with the smallest total of its numbers",
        "least cost to walk from the first to the last cell moving right or down",
        "given a matrix of costs, return the lowest sum along a right and down path",
        "what is the minimal sum of cells on a route to the opposite corner of {grid}",
        "shortest weighted path in a grid when only two directions are allowed",
        "smallest sum that a walk down and right through {grid} can collect",
    ],
    cases=[
        (([[1, 3, 1], [1, 5, 1], [4, 2, 1]],), 7),
        (([[1, 2, 3], [4, 5, 6]],), 12),
        (([[5]],), 5),
        (([[1, 2, 3]],), 6),
        (([[1], [2], [3]],), 6),
    ],
)
def minimum_path_sum(grid: list[list[int]]) -> int:
    rows, cols = len(grid), len(grid[0])
    # cheapest sum to reach each cell | table of the least costs | one cost for every cell
    cost = [[0] * cols for _ in range(rows)]
    for i in range(rows):
        for j in range(cols):
            # every path pays for the cell itself | begin with the own value | the number in the cell is always added
            cost[i][j] = grid[i][j]
            # inner cells take the cheaper neighbour | choose the better of above and left | smaller cost of the two ways
            if i > 0 and j > 0:
                cost[i][j] += min(cost[i - 1][j], cost[i][j - 1])
            # in the first column come from above, in the first row from the left | cells on the border have one way | only one neighbour
            elif i > 0:
                cost[i][j] += cost[i - 1][j]
            elif j > 0:
                cost[i][j] += cost[i][j - 1]
    return cost[rows - 1][cols - 1]


@family(
    titles=[
        "compute the catalan number with index {n}",
        "n-th catalan number by dynamic programming",
        "how many binary search trees can be built from {n} different keys",
        "count the correct ways to nest {n} pairs of parentheses",
        "return the number of binary trees with {n} nodes",
        "given {n}, evaluate the catalan recurrence with a table",
        "number of structurally unique search trees that hold {n} values",
        "find term {n} of the sequence 1, 1, 2, 5, 14, 42",
    ],
    cases=[((0,), 1), ((1,), 1), ((3,), 5), ((5,), 42), ((10,), 16796)],
)
def catalan_number(n: int) -> int:
    # table of the catalan numbers up to {n} | store every smaller term | one entry per index
    catalan = [0] * (n + 1)
    # the first catalan number is one | base case | the empty tree counts once
    catalan[0] = 1
    for i in range(1, n + 1):
        # split into a left and a right part | choose how much goes to the left | sum over all ways to divide the rest
        for j in range(i):
            # multiply the counts of both parts | combine each left with each right part | product of the two smaller terms
            catalan[i] += catalan[j] * catalan[i - 1 - j]
    return catalan[n]


@family(
    titles=[
        "can {arr} be split into two parts with the same sum",
        "partition equal subset sum",
        "check if some of the numbers add up to half of the total",
        "decide whether an array of positive integers can be divided into two equally heavy groups",
        "is there a way to share the values of {arr} fairly between two people",
        "given positive numbers, tell if two subsets of equal sum use all of them",
        "return true when a subset of {arr} reaches half of the whole sum",
        "test if weights can be balanced on both sides of a scale",
    ],
    cases=[(([1, 5, 11, 5],), True), (([1, 2, 3, 5],), False), (([2, 2],), True), (([3],), False), (([1, 2, 5],), False)],
)
def can_partition_equally(arr: list[int]) -> bool:
    total = sum(arr)
    # an odd total cannot be halved | both halves need the same whole number | the sum has to be even
    if total % 2 == 1:
        return False
    half = total // 2
    # which sums some subset reaches | mark the sums that can be made | table of possible subset sums
    reachable = [False] * (half + 1)
    # the empty subset has sum zero | nothing chosen gives zero | base case
    reachable[0] = True
    for x in arr:
        # downwards, so that a number is used once | from large to small sums | try to add the number to every smaller sum
        for target in range(half, x - 1, -1):
            if reachable[target - x]:
                reachable[target] = True
    return reachable[half]


@family(
    titles=[
        "rod cutting: best price for a rod whose pieces sell for {prices}",
        "cut a rod into pieces so that their prices add up to the most",
        "maximum revenue from selling a rod in parts",
        "given a price for each length, find the most valuable way to cut a rod",
        "how much money can be earned by cutting a rod optimally",
        "return the highest total price of pieces that together have the length of {prices}",
        "optimal cutting of a rod, where {prices} lists the value of lengths 1, 2, 3 and so on",
        "divide a rod for the greatest profit",
    ],
    cases=[(([1, 5, 8, 9],), 10), (([1, 5, 8, 9, 10, 17, 17, 20],), 22), (([3],), 3), (([],), 0), (([2, 3],), 4)],
)
def rod_cutting(prices: list[int]) -> int:
    # length of the rod | the rod is as long as the price list | number of prices
    n = len(prices)
    # best revenue for every length | table of the best prices | one entry for each shorter rod
    best = [0] * (n + 1)
    for length in range(1, n + 1):
        # try every size of the first piece | go through all places for the first cut | choose the first part
        for cut in range(1, length + 1):
            # price of the piece plus the best of the rest | sell the piece and cut the rest well | keep the greater revenue
            best[length] = max(best[length], prices[cut - 1] + best[length - cut])
    return best[n]


@family(
    titles=[
        "tribonacci number {n} modulo {K}",
        "compute the n-th term of the tribonacci sequence and reduce it by {K}",
        "remainder of a tribonacci number when divided by {K}",
        "each term is the sum of the three before it, return term {n} modulo {K}",
        "given {n}, find the tribonacci value 0, 1, 1, 2, 4, 7, 13 at this index, modulo {K}",
        "sequence where three numbers are added to get the next, taken modulo {K}",
        "evaluate the tribonacci recurrence for {n} with all results kept below {K}",
        "fibonacci with three summands: element {n} mod {K}",
    ],
    cases=[((0,), 0), ((1,), 1), ((2,), 1), ((4,), 4), ((10,), 149), ((14,), 705)],
    holes={"K": (1000, 100, 997, 10007)},
)
def tribonacci_modulo(n: int) -> int:
    # table of the terms | room for all terms up to {n} | store the sequence in an array
    terms = [0] * (n + 3)
    # the sequence begins with 0, 1, 1 | first three terms | set the start values
    terms[1] = 1
    terms[2] = 1
    for i in range(3, n + 1):
        # sum of the last three terms modulo {K} | add the three terms before and reduce by {K} | next term, kept below {K}
        terms[i] = (terms[i - 1] + terms[i - 2] + terms[i - 3]) % K
    return terms[n]


@family(
    titles=[
        "number of ways to decode the digits of {s} into letters",
        "the decode ways problem: A is 1, Z is 26, how many messages are possible",
        "in how many ways can a string of digits be read as letters",
        "count the decodings of a message in which letters were replaced by 1 to 26",
        "given a digit string, how many letter texts may it stand for",
        "how often can {s} be split into numbers between 1 and 26",
        "return the amount of valid letter readings of an encoded number",
        "find out how many words a sequence of digits could encode",
    ],
    cases=[(("12",), 2), (("226",), 3), (("06",), 0), (("10",), 1), (("27",), 1), (("11106",), 2)],
)
def count_decodings(s: str) -> int:
    # ways to decode each prefix | one count for every prefix length | table of decodings
    ways = [0] * (len(s) + 1)
    # the empty prefix has one decoding | base case | nothing can be read in one way
    ways[0] = 1
    for i in range(1, len(s) + 1):
        # a single digit from 1 to 9 is a letter | read the last digit alone unless it is zero | take one digit
        if s[i - 1] != "0":
            ways[i] += ways[i - 1]
        # two digits from 10 to 26 are a letter | read the last two digits together | take a pair of digits
        if i > 1 and (s[i - 2] == "1" or (s[i - 2] == "2" and s[i - 1] <= "6")):
            ways[i] += ways[i - 2]
    return ways[len(s)]


@family(
    titles=[
        "maximum profit from trading a stock when each sale costs a fee of {K}",
        "buy and sell a share as often as you like, paying {K} per trade",
        "best stock profit for {prices} with a transaction fee of {K}",
        "trade with a fee: how much can be earned if every purchase and sale together cost {K}",
        "given daily prices, find the greatest gain after subtracting {K} for each transaction",
        "highest earnings from repeated buying and selling with a charge of {K}",
        "return the most money made on a stock if {K} is lost at every sale",
        "optimal trading with prices {prices} and commission {K}",
    ],
    cases=[(([1, 3, 2, 8, 4, 9],), 8), (([1, 3, 7, 5, 10, 3],), 7), (([5, 4, 3],), 0), (([1, 2],), 0), (([4],), 0)],
    holes={"K": (2, 3, 4, 5)},
)
def max_profit_with_fee(prices: list[int]) -> int:
    # profit without a share | money when nothing is owned | start with no gain
    cash = 0
    # profit while a share is held | buy on the first day | balance after buying the first share
    hold = -prices[0]
    for price in prices:
        # keep the share or buy one now | best balance with a share | buy if that leaves more money
        hold = max(hold, cash - price)
        # stay without or sell and pay {K} | best balance after a sale with fee {K} | sell if it pays in spite of the fee {K}
        cash = max(cash, hold + price - K)
    return cash


@family(
    titles=[
        "number of ways to throw a sum of {target} with {K} dice",
        "how many rolls of {K} six sided dice add up to {target}",
        "count the outcomes of {K} dice whose total is {target}",
        "dice throw problem for {K} dice and a given sum",
        "given a target, find how many results of rolling {K} dice reach it",
        "ways to write {target} as an ordered sum of {K} numbers from 1 to 6",
        "return the count of throws with {K} dice that show {target} points in all",
        "with {K} ordinary dice, in how many ways can the points total {target}",
    ],
    cases=[((7,), 6), ((2,), 1), ((12,), 1), ((1,), 0), ((13,), 0), ((4,), 3)],
    holes={"K": (2, 3, 4, 5)},
)
def count_dice_rolls(target: int) -> int:
    # ways for every number of dice and every sum | table over dice and totals | one row for each number of dice
    ways = [[0] * (target + 1) for _ in range(K + 1)]
    # no dice give the sum zero in one way | base case | zero dice show zero points
    ways[0][0] = 1
    # add one die at a time up to {K} | go through the {K} dice | fill the rows for 1 to {K} dice
    for i in range(1, K + 1):
        for total in range(1, target + 1):
            # the last die shows 1 to 6 | try every face of the last die | remove the points of the last die
            for face in range(1, min(6, total) + 1):
                ways[i][total] += ways[i - 1][total - face]
    return ways[K][target]


@family(
    titles=[
        "longest subsequence of {arr} in which each element is {K} more than the one before",
        "length of the longest arithmetic subsequence with difference {K}",
        "how many elements can be picked in order so that neighbours differ by exactly {K}",
        "given a step of {K}, find the longest chain of array elements that climbs by it",
        "maximum size of a subsequence that grows by {K} every time",
        "count the elements of the longest progression with common difference {K} inside {arr}",
        "largest number of values that can be kept if each has to exceed the previous one by {K}",
        "use a dictionary to find the longest run of kept numbers with constant step {K}",
    ],
    cases=[(([1, 2, 3, 4],), 4), (([1, 3, 5, 7],), 1), (([4, 1, 5, 2, 6, 3],), 3), (([],), 0), (([3, 2, 1],), 1)],
    holes={"K": (1, 2, 3, 5)},
)
def longest_subsequence_with_step(arr: list[int]) -> int:
    # best length for every last value | map a value to the longest chain that ends with it | chain length by end value
    lengths: dict[int, int] = {}
    longest = 0
    for x in arr:
        # append the number to a chain that ends {K} lower | extend the chain of the value {K} below | one more than the chain before
        lengths[x] = lengths.get(x - K, 0) + 1
        # keep the longest chain | update the best length | compare with the answer so far
        longest = max(longest, lengths[x])
    return longest
