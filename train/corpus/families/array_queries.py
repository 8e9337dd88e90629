"""Problem families that ask a question about an array: pairs, subarrays, frequencies and sets of its elements."""

# ruff: noqa: F821 - a hole is a name without a value here, and the subset has neither all() nor any()
# mypy: disable-error-code="name-defined"

from ..definition import Long, Vec, family


@family(
    titles=[
        "check if an array has a pair with a given sum",
        "do two elements of {arr} add up to {target}",
        "two sum problem: is there a pair of numbers whose total equals {target}",
        "given an array and a value, decide if two different positions sum to that value",
        "program using a hash set to detect a pair with sum {target}",
        "return true when some element and an earlier one together make {target}",
        "existence of two array entries that complete each other to {target}",
    ],
    cases=[
        (([1, 4, 45, 6, 10, 8], 16), True),
        (([1, 2, 3], 7), False),
        (([], 0), False),
        (([5], 10), False),
        (([5, 5], 10), True),
        (([-3, 8], 5), True),
    ],
)
def has_pair_with_sum(arr: list[int], target: int) -> bool:
    # numbers seen so far | remember the visited elements | create an empty hash set
    seen: set[int] = set()
    for x in arr:
        # the missing part was seen before | look for the complement | check whether {target} minus the element is known
        if target - x in seen:
            return True
        # remember the element | add it to the set | store the current number
        seen.add(x)
    return False


@family(
    titles=[
        "count pairs with a given sum",
        "how many index pairs of {arr} add up to {target}",
        "number of ways to choose two positions whose elements total {target}",
        "given an array that may contain duplicates, count all pairs with sum {target}",
        "program to count two-element combinations summing to a target with a frequency map",
        "for each number add how often its complement to {target} occurred before it",
        "tally every pair i < j for which the two values make {target} together",
    ],
    cases=[
        (([1, 5, 7, -1, 5], 6), 3),
        (([1, 1, 1, 1], 2), 6),
        (([], 3), 0),
        (([4], 8), 0),
        (([10, 12, 10, 15, -1], 125), 0),
    ],
)
def count_pairs_with_sum(arr: list[int], target: int) -> int:
    # how often each number occurred | frequency of the elements seen so far | map from value to count
    freq: dict[int, int] = {}
    count = 0
    for x in arr:
        # pairs with earlier complements | each earlier partner gives a pair | add the frequency of the complement
        count += freq.get(target - x, 0)
        # count the current number | update its frequency | record the element
        freq[x] = freq.get(x, 0) + 1
    return count


@family(
    titles=[
        "count pairs with difference {K} in an array of distinct elements",
        "how many pairs of numbers in {arr} differ by exactly {K}",
        "number of values x such that x + {K} is also in the array",
        "given different integers, find how many pairs are {K} apart",
        "program to count pairs with a difference of {K} using a hash set",
        "put all elements into a set and count those whose value plus {K} belongs to it",
        "pairs at distance {K} among unique array elements",
    ],
    cases=[(([1, 5, 3, 4, 2],), 3), (([],), 0), (([7],), 0), (([8, 12, 16, 4, 0, 20],), 0), (([-1, 1],), 1)],
    holes={"K": (2, 1, 3, 4, 5, 10)},
)
def count_pairs_with_difference(arr: list[int]) -> int:
    # set of all elements | values of the array for fast lookup | hash set of the numbers
    values: set[int] = set()
    for x in arr:
        values.add(x)
    count = 0
    for x in arr:
        # the partner is {K} larger | is the number plus {K} present | look up the partner in the set
        if x + K in values:
            # a pair is found | increase the number of pairs | count this pair
            count += 1
    return count


@family(
    titles=[
        "equilibrium index of an array",
        "find the position where the sum of the left part equals the sum of the right part",
        "first index with equal totals on both sides, or -1",
        "given an array, return the balance point: elements before it add to the same as elements after it",
        "program to locate the pivot index of {arr}",
        "at which index could the array be balanced, not counting the element itself",
        "index that splits the array into two parts of the same sum, itself excluded; -1 if none exists",
    ],
    cases=[(([-7, 1, 5, 2, -4, 3, 0],), 3), (([1, 2, 3],), -1), (([5],), 0), (([],), -1), (([2, 0, 2],), 1)],
)
def equilibrium_index(arr: list[int]) -> int:
    # total of the array | sum of all elements | everything is on the right at first
    right_sum = sum(arr)
    left_sum = 0
    for i in range(len(arr)):
        # remove the element from the right side | the right sum excludes index {i} | take it out of the right part
        right_sum -= arr[i]
        # both sides are equal | compare the two sums | the balance point is found
        if left_sum == right_sum:
            return i
        # add the element to the left side | it belongs to the left part from now on | extend the left sum
        left_sum += arr[i]
    return -1


@family(
    titles=[
        "majority element of an array",
        "find the number that occurs in more than half of the positions, or -1",
        "Boyer-Moore voting algorithm",
        "given an array, which value appears more than n / 2 times; answer -1 if there is no such value",
        "program to find the majority vote in linear time and constant space",
        "pick a candidate by cancelling different elements, then verify its count",
        "element holding an absolute majority in {arr}, -1 without a winner",
    ],
    cases=[(([3, 3, 4, 2, 4, 4, 2, 4, 4],), 4), (([1, 2, 3],), -1), (([7],), 7), (([1, 1, 2, 2],), -1), (([5, 6, 5],), 5)],
)
def majority_element(arr: list[int]) -> int:
    candidate, votes = -1, 0
    for x in arr:
        # no candidate left | choose a new candidate | the votes are used up
        if votes == 0:
            candidate = x
        # an equal element supports it, another one opposes it | update the votes | vote for or against the candidate
        votes += 1 if x == candidate else -1
    # count the candidate | verify the candidate | how often does it really occur
    count = 0
    for x in arr:
        if x == candidate:
            count += 1
    # more than half of the elements | accept it only with a true majority | otherwise there is no majority
    return candidate if count * 2 > len(arr) else -1


@family(
    titles=[
        "first element that occurs a second time",
        "find the earliest repetition while reading {arr} from left to right, -1 if there is none",
        "which value is the first to be seen again",
        "given an array of positive numbers, return the first duplicate found during a scan, or -1",
        "program to stop at the first number already met before",
        "detect a repeated element with a set; the one whose second copy comes soonest wins",
        "value of the first position that holds something seen earlier",
    ],
    cases=[(([10, 5, 3, 4, 3, 5, 6],), 3), (([1, 2, 3],), -1), (([],), -1), (([8, 8],), 8), (([2, 1, 1, 2],), 1)],
)
def first_duplicate(arr: list[int]) -> int:
    # values seen so far | set of visited numbers | nothing has been seen yet
    seen: set[int] = set()
    for x in arr:
        # the number was seen before | already in the set | this is a repetition
        if x in seen:
            return x
        # mark the number as seen | put it into the set | remember it
        seen.add(x)
    # every element is unique | no duplicate exists | nothing was repeated
    return -1


@family(
    titles=[
        "first non-repeating element of an array",
        "find the first number that occurs exactly once",
        "earliest unique value in {arr}, or -1 when every value repeats",
        "given an array of positive integers, return its leftmost element without a copy",
        "program to get the first element with frequency one",
        "count all values, then look from the left for one that has no duplicate",
        "which entry is the first that appears only a single time",
    ],
    cases=[(([9, 4, 9, 6, 7, 4],), 6), (([1, 1],), -1), (([],), -1), (([5],), 5), (([2, 3, 2],), 3)],
)
def first_non_repeating(arr: list[int]) -> int:
    freq: dict[int, int] = {}
    # count every element | build the frequency table | first pass: occurrences of each value
    for x in arr:
        freq[x] = freq.get(x, 0) + 1
    # look for the first unique element | second pass in the original order | check the counts from left to right
    for x in arr:
        # it occurs only once | the count is one | no other copy exists
        if freq[x] == 1:
            return x
    return -1


@family(
    titles=[
        "most frequent element in an array",
        "find the mode of {arr}",
        "which number appears most often; among equals the one that reaches the count first",
        "given a non-empty list, return the value with the highest number of occurrences",
        "program to find the element repeated the maximum number of times using a map",
        "count as you go and remember the value whose counter is the largest",
        "the commonest integer of an array",
    ],
    cases=[(([1, 3, 2, 1, 4, 1],), 1), (([7],), 7), (([2, 2, 5, 5],), 2), (([2, 5, 5, 2],), 5), (([4, -4, -4],), -4)],
)
def most_frequent_element(arr: list[int]) -> int:
    # number of occurrences of each value | frequency map | map every number to its count
    freq: dict[int, int] = {}
    best_value, best_count = arr[0], 0
    for x in arr:
        # one more occurrence | increase the count of the element | update the frequency
        freq[x] = freq.get(x, 0) + 1
        # more often than the best so far | a new most frequent value | compare with the highest count
        if freq[x] > best_count:
            best_count = freq[x]
            best_value = x
    return best_value


@family(
    titles=[
        "elements that occur more than {K} times",
        "list each value of {arr} whose frequency is above {K}",
        "find all numbers with over {K} occurrences in the array",
        "given an array, report the values repeated more than {K} times, each of them once",
        "program to collect numbers as soon as their count goes past {K}",
        "which integers show up at least {K} + 1 times",
        "frequent values of a list: counted with a map and output when the counter first exceeds {K}",
    ],
    cases=[(([1, 2, 1, 1, 2, 3, 2],), [1, 2]), (([],), []), (([4, 4],), []), (([5, 5, 5, 5],), [5])],
    holes={"K": (2, 1, 3, 4)},
)
def values_more_than_k_times(arr: list[int]) -> Vec[int]:
    freq: dict[int, int] = {}
    result: Vec[int] = []
    for x in arr:
        # count the number | increase its frequency | one more copy of the value
        freq[x] = freq.get(x, 0) + 1
        # the count has just passed {K} | exactly one more than {K} copies so far | it exceeds {K} for the first time
        if freq[x] == K + 1:
            # report the value once | add it to the answer | append the frequent number
            result.append(x)
    return result


@family(
    titles=[
        "count distinct elements in an array",
        "how many different numbers are there in {arr}",
        "number of unique values, duplicates counted once",
        "given an array, find the size of the set of its elements",
        "program to count different integers with hashing",
        "ignore repetitions and tell how many values remain",
        "insert the elements into a set and count each one that was not there before",
    ],
    cases=[(([10, 20, 20, 10, 30, 10],), 3), (([],), 0), (([5],), 1), (([1, 1, 1],), 1), (([-1, 0, 1],), 3)],
)
def count_distinct_elements(arr: list[int]) -> int:
    seen: set[int] = set()
    count = 0
    for x in arr:
        # a value not seen before | the element is new | not yet in the set
        if x not in seen:
            # remember it | insert the new value | mark it as seen
            seen.add(x)
            # one more distinct element | increase the count | count the new value
            count += 1
    return count


@family(
    titles=[
        "intersection of two arrays",
        "common elements of {arr1} and {arr2} without duplicates",
        "find the values that are in both lists, in the order of the second one",
        "given two arrays, return every number they share exactly once",
        "program to intersect unsorted arrays with a hash set",
        "which integers of {arr2} also occur in {arr1}, each listed a single time",
        "put the first array into a set and list each different match found in the second",
    ],
    cases=[
        (([1, 2, 3, 4], [3, 4, 5]), [3, 4]),
        (([1, 1, 2], [2, 1, 1]), [2, 1]),
        (([], [1]), []),
        (([5], [6]), []),
        (([7, 8], [8, 7]), [8, 7]),
    ],
)
def array_intersection(arr1: list[int], arr2: list[int]) -> Vec[int]:
    # elements of the first array | put the first array into a set | hash set of the values in {arr1}
    first: set[int] = set()
    for x in arr1:
        first.add(x)
    used: set[int] = set()
    common: Vec[int] = []
    for x in arr2:
        # in both arrays and not listed yet | a common value that is new | check membership and avoid duplicates
        if x in first and x not in used:
            # list the common element | append it to the answer | add the shared value to the result
            common.append(x)
            # do not list it again | mark it as used | remember that it was reported
            used.add(x)
    return common


@family(
    titles=[
        "missing number in an array of 1 to n",
        "the array holds all numbers from 1 to its size plus one except a single one; find it",
        "which integer is absent from a permutation with one gap",
        "given n - 1 distinct numbers out of 1..n, return the one left out",
        "program to find the lost number with the sum formula",
        "expected total n (n + 1) / 2 minus the actual total of {arr}",
        "identify the value that was removed from the sequence 1, 2, ..., n",
    ],
    cases=[(([1, 2, 4, 6, 3, 7, 8],), 5), (([],), 1), (([1],), 2), (([2],), 1), (([3, 1],), 2)],
)
def missing_number(arr: list[int]) -> int:
    # numbers from 1 to n with one missing | n is one more than the size | one element is absent
    n = len(arr) + 1
    # sum of 1 to n by the formula | what the total should be | expected sum without a gap
    total = n * (n + 1) // 2
    for x in arr:
        # take away each present number | subtract the element | reduce the expected sum
        total -= x
    # what remains is missing | the rest is the answer | return the difference
    return total


@family(
    titles=[
        "check for duplicates within distance {K}",
        "does {arr} contain equal elements that are at most {K} positions apart",
        "nearby duplicate test: two indices with the same value and a difference not above {K}",
        "given an array, is any value repeated within the next {K} places",
        "program to detect a repetition at most {K} steps away by using a map of last positions",
        "are there i < j with equal elements and j - i <= {K}",
        "return true if some number comes back after no more than {K} steps",
    ],
    cases=[
        (([1, 2, 3, 1],), True),
        (([1, 2, 3, 4, 1],), False),
        (([],), False),
        (([5, 5],), True),
        (([9, 1, 2, 3, 9, 3],), True),
        (([4],), False),
    ],
    holes={"K": (3, 2, 1, 4, 5)},
)
def has_nearby_duplicate(arr: list[int]) -> bool:
    # most recent index of every value | map from number to last position | where each value was seen last
    last: dict[int, int] = {}
    for i in range(len(arr)):
        x = arr[i]
        # seen at most {K} places ago | the previous copy is close enough | check the distance to the last copy
        if x in last and i - last[x] <= K:
            return True
        # update the position | this is now the latest copy | remember the current index
        last[x] = i
    return False


@family(
    titles=[
        "number of subarrays with sum {target}",
        "count contiguous parts of {arr} that add up to {target}",
        "how many subarrays have a total of exactly {target}",
        "given an array with negative numbers too, count segments whose sum equals the target",
        "program to count subarrays of given sum with prefix sums and a hash map",
        "for each end position add the number of earlier prefixes smaller by {target}",
        "in how many ways can one choose consecutive elements summing to {target}",
    ],
    cases=[
        (([10, 2, -2, -20, 10], -10), 3),
        (([1, 1, 1], 2), 2),
        (([], 0), 0),
        (([3], 3), 1),
        (([0, 0], 0), 3),
        (([1, 2, 3], 7), 0),
    ],
)
def count_subarrays_with_sum(arr: list[int], target: int) -> int:
    # frequency of each prefix sum | map of prefix sums to counts | how often every prefix sum occurred
    freq: dict[int, int] = {}
    # the empty prefix has sum zero | start with one prefix of sum 0 | count the prefix without elements
    freq[0] = 1
    prefix, count = 0, 0
    for x in arr:
        prefix += x
        # subarrays that end here | earlier prefixes that differ by {target} | add the matching prefixes
        count += freq.get(prefix - target, 0)
        # record the prefix sum | store the current prefix | increase the count of this prefix
        freq[prefix] = freq.get(prefix, 0) + 1
    return count


@family(
    titles=[
        "maximum sum of {K} consecutive elements",
        "largest total of a subarray of size {K}",
        "sliding window of length {K}: find the greatest window sum, 0 if the array is too short",
        "given an array, which {K} neighbours have the highest sum; return that sum",
        "program to compute the best sum over all windows with {K} elements",
        "slide over {arr}, adding the entering and dropping the leaving number of a window of {K}",
        "highest sum reached by any block of {K} adjacent numbers (0 for fewer than {K} numbers)",
    ],
    cases=[(([1, 4, 2, 10, 2],), 16), (([1, 2],), 0), (([5, 5, 5],), 15), (([-1, -2, -3, -4],), -6), (([],), 0)],
    holes={"K": (3, 2, 4, 5)},
)
def max_window_sum(arr: list[int]) -> int:
    n = len(arr)
    # no window fits | too few elements | the array is shorter than {K}
    if n < K:
        return 0
    # sum of the first window | add up the first {K} elements | start with the leftmost window
    window = 0
    for i in range(K):
        window += arr[i]
    best = window
    for i in range(K, n):
        # slide the window by one | add the new element and drop the oldest | update the window sum
        window += arr[i] - arr[i - K]
        # keep the larger sum | compare with the best window | remember the maximum
        best = max(best, window)
    return best


@family(
    titles=[
        "length of the longest subarray with sum zero",
        "longest run of consecutive elements that cancel out",
        "how long is the largest contiguous part of {arr} adding to 0",
        "given positive and negative numbers, find the maximum length of a zero-sum segment",
        "program for the largest zero sum subarray using the first index of every prefix sum",
        "two equal prefix sums enclose a sum of 0: report the widest such distance",
        "size of the biggest block of neighbours whose total is 0, or 0 without one",
    ],
    cases=[(([15, -2, 2, -8, 1, 7, 10, 23],), 5), (([1, 2, 3],), 0), (([0],), 1), (([],), 0), (([1, -1, 3, -3],), 4)],
)
def longest_zero_sum_subarray(arr: list[int]) -> int:
    # first position of each prefix sum | map from prefix sum to length | where a prefix sum occurs first
    first: dict[int, int] = {}
    # the empty prefix | sum zero before the first element | prefix of length 0
    first[0] = 0
    prefix, best = 0, 0
    for i in range(len(arr)):
        prefix += arr[i]
        # the same prefix sum again | elements in between add to zero | this sum was seen before
        if prefix in first:
            best = max(best, i + 1 - first[prefix])
        else:
            # remember its first occurrence | store the earliest length | a new prefix sum
            first[prefix] = i + 1
    return best


@family(
    titles=[
        "length of the smallest subarray with sum at least {target}",
        "shortest contiguous part of {arr} whose total reaches {target}",
        "minimum number of neighbouring elements that add up to {target} or more, 0 if impossible",
        "given positive integers, find the least window size with a sum not below {target}",
        "program with two pointers that shrinks the window while its sum is large enough",
        "how few consecutive numbers suffice to reach a sum of {target}",
        "minimal length segment of positive numbers summing to {target} or above; answer 0 when there is none",
    ],
    cases=[
        (([2, 3, 1, 2, 4, 3], 7), 2),
        (([1, 1, 1], 5), 0),
        (([8], 7), 1),
        (([1, 2, 3, 4, 5], 15), 5),
        (([], 1), 0),
    ],
)
def shortest_subarray_with_sum(arr: list[int], target: int) -> int:
    n = len(arr)
    # longer than any subarray | no window found yet | start with an impossible length
    best = n + 1
    left, total = 0, 0
    for right in range(n):
        # extend the window to the right | add the new element | include the element at {right}
        total += arr[right]
        # the sum is large enough | shrink the window from the left | try to make the window shorter
        while total >= target:
            best = min(best, right - left + 1)
            total -= arr[left]
            left += 1
    # zero if nothing was found | no subarray reaches the sum | return the length or 0
    return best if best <= n else 0


@family(
    titles=[
        "maximum difference between two elements such that the larger one comes later",
        "best time to buy and sell a stock once",
        "greatest profit from one purchase and one later sale, 0 if prices only fall",
        "given daily prices, how much can be earned with a single transaction",
        "program to find the largest increase from an earlier to a later value of {prices}",
        "track the lowest price so far and the best gain over it",
        "biggest rise between any day and a following day, never below zero",
    ],
    cases=[(([7, 1, 5, 3, 6, 4],), 5), (([7, 6, 4],), 0), (([],), 0), (([2],), 0), (([1, 2, 0, 4],), 4)],
)
def best_single_profit(prices: list[int]) -> int:
    best = 0
    # position of the lowest price so far | the first day is the cheapest at first | index of the best day to buy
    lowest = 0
    for i in range(len(prices)):
        # a cheaper day was found | the price drops below the minimum | buy on this day instead
        if prices[i] < prices[lowest]:
            lowest = i
        # gain when selling today | profit over the lowest price | update the best profit
        best = max(best, prices[i] - prices[lowest])
    return best


@family(
    titles=[
        "lengths of the runs of equal elements in an array",
        "run lengths of {arr}",
        "how many equal values stand next to each other, for every block from left to right",
        "given an array, return the size of each maximal group of identical neighbours",
        "program to measure consecutive repetitions, as in run-length encoding without the values",
        "count each streak of the same number and list the counts in order",
        "sizes of the constant blocks that make up the array",
    ],
    cases=[(([1, 1, 2, 3, 3, 3],), [2, 1, 3]), (([],), []), (([5],), [1]), (([4, 4, 4],), [3]), (([1, 2, 1],), [1, 1, 1])],
)
def run_lengths_of_array(arr: list[int]) -> Vec[int]:
    lengths: Vec[int] = []
    n = len(arr)
    i = 0
    # until the whole array is consumed | one round for each run | repeat while elements are left
    while i < n:
        # find the end of the run | move {j} past all equal elements | skip over copies of the first value
        j = i
        while j < n and arr[j] == arr[i]:
            j += 1
        # store the length of the run | the run covers indices {i} to {j} - 1 | append the size of the block
        lengths.append(j - i)
        # continue behind the run | the next run starts at {j} | go on with the next block
        i = j
    return lengths


@family(
    titles=[
        "next greater element for every array element",
        "for each position find the first larger value to the right, or -1",
        "nearest bigger number on the right side of every entry of {arr}",
        "given an array, use a stack to get the next greater element of all positions",
        "program with a monotonic stack: first following element that is greater, -1 if none",
        "which later value is the first to exceed each number of the list",
        "array of next larger values, computed from right to left with a decreasing stack",
    ],
    cases=[
        (([4, 5, 2, 25],), [5, 25, 25, -1]),
        (([13, 7, 6, 12],), [-1, 12, 12, -1]),
        (([],), []),
        (([3, 3],), [-1, -1]),
        (([1, 2, 3],), [2, 3, -1]),
    ],
)
def next_greater_elements(arr: list[int]) -> list[int]:
    n = len(arr)
    result = [0] * n
    # candidates for the next greater value | stack of larger elements on the right | create an empty stack
    stack: Vec[int] = []
    # process the array backwards | go from right to left | start at the last element
    for i in range(n - 1, -1, -1):
        # drop values that are not greater | pop elements up to the current one | smaller candidates are useless now
        while len(stack) > 0 and stack[-1] <= arr[i]:
            stack.pop()
        # the top is the answer, or -1 if empty | next greater element is on top | -1 when no candidate is left
        result[i] = stack[-1] if len(stack) > 0 else -1
        # the element is a candidate for others | push the current value | put it on the stack
        stack.append(arr[i])
    return result


@family(
    titles=[
        "sum of all subarray sums",
        "add up the totals of every contiguous subarray of {arr}",
        "total over all subarrays, each element weighted by how many subarrays contain it",
        "given an array, find the sum of the elements of all its subarrays in linear time",
        "program that sums each number times (index + 1) times (size - index)",
        "what do the sums of all consecutive segments amount to together",
        "contribution technique: combined sum of the contiguous parts of an array",
    ],
    cases=[(([1, 2, 3],), 20), (([],), 0), (([5],), 5), (([1, -1],), 0), (([2000000000, 1],), 4000000002)],
)
def sum_of_all_subarrays(arr: list[int]) -> Long:
    total: Long = 0
    n = len(arr)
    for i in range(n):
        # number of subarrays with this element | choices of start times choices of end | how many segments contain it
        times = (i + 1) * (n - i)
        # the element is counted that often | start from the value itself | its contribution to the sum
        part: Long = arr[i]
        part *= times
        # add the contribution | accumulate the weighted value | include it in the total
        total += part
    return total


@family(
    titles=[
        "longest sequence of consecutive integers in an unsorted array",
        "length of the longest chain x, x + 1, x + 2, ... contained in {arr}",
        "how many successive numbers can be found among the elements, in any order",
        "given an array, find the size of its largest subset of consecutive values",
        "program for the longest consecutive subsequence with a hash set",
        "start at each number without a predecessor and count upwards while the next one exists",
        "greatest count of integers in a row that all occur somewhere in the list",
    ],
    cases=[(([100, 4, 200, 1, 3, 2],), 4), (([],), 0), (([7],), 1), (([1, 1, 2],), 2), (([10, 30, 20],), 1), (([0, -1, 1],), 3)],
)
def longest_consecutive_integers(arr: list[int]) -> int:
    # set of all numbers | insert the elements into a hash set | values for fast lookup
    values: set[int] = set()
    for x in arr:
        values.add(x)
    best = 0
    for x in arr:
        # the number begins a sequence | no predecessor exists | only start at the smallest value of a chain
        if x - 1 not in values:
            # count upwards | follow the chain to its end | move on while the next number exists
            end = x
            while end in values:
                end += 1
            # update the longest length | compare with the best chain | keep the maximum
            best = max(best, end - x)
    return best


@family(
    titles=[
        "container with most water",
        "largest area between two vertical lines with the heights in {heights}",
        "choose two lines so that the water held between them is greatest",
        "given line heights at positions 0, 1, 2, ..., find the maximum of distance times smaller height",
        "program with two pointers moving inwards from the ends to maximise the enclosed area",
        "how much water fits between the best pair of walls of no thickness",
        "maximise (right - left) times the lower of both borders, always leaving the lower border behind",
    ],
    cases=[(([1, 8, 6, 2, 5, 4, 8, 3, 7],), 49), (([1, 1],), 1), (([5],), 0), (([],), 0), (([4, 3, 2, 1, 4],), 16)],
)
def container_with_most_water(heights: list[int]) -> int:
    # begin with the widest container | pointers at both ends | take the first and the last line
    left, right = 0, len(heights) - 1
    best = 0
    while left < right:
        # the lower line limits the water | width times the smaller height | area between the two lines
        area = (right - left) * min(heights[left], heights[right])
        best = max(best, area)
        # move the lower line inwards | replace the shorter border | the smaller side cannot do better
        if heights[left] < heights[right]:
            left += 1
        else:
            right -= 1
    return best
