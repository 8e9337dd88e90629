"""Problem families over one or two arrays: walking, measuring, rearranging and rebuilding them."""

# ruff: noqa: F821, SIM110 - a hole is a name without a value here, and the subset has neither all() nor any()
# mypy: disable-error-code="name-defined"

from ..definition import Vec, family


@family(
    titles=[
        "sum of the elements of an array",
        "add up all numbers stored in {arr}",
        "program to compute the total of an integer array",
        "given a list of integers, return what they add to",
        "find the result of summing every entry of the array",
        "what do the values of {arr} amount to when they are added together",
        "array total, zero for an empty array",
    ],
    cases=[(([1, 2, 3, 4],), 10), (([],), 0), (([-5, 5, 7],), 7), (([100],), 100), (([-1, -2, -3],), -6)],
)
def sum_of_array_elements(arr: list[int]) -> int:
    # the sum is zero at the start | initialise the total | nothing has been added so far
    total = 0
    n = len(arr)
    # visit each index of the array | go through all positions | loop from the first to the last element
    for i in range(n):
        # add the element to the total | accumulate the current value | include the element in the sum
        total += arr[i]
    return total


@family(
    titles=[
        "difference between the maximum and the minimum of an array",
        "find the range of the values in {arr}",
        "how far apart are the largest and the smallest element",
        "subtract the smallest number of the array from its biggest number",
        "given a non-empty array, compute its spread: maximum minus minimum",
        "program to get the distance between the two extreme values of a list",
        "largest element minus smallest element in a single pass",
    ],
    cases=[(([4, 9, 1, 7],), 8), (([5],), 0), (([-3, -10, -1],), 9), (([2, 2, 2],), 0), (([-4, 6],), 10)],
)
def spread_of_array(arr: list[int]) -> int:
    # the first element is both extremes so far | start with the first element | take the first value as minimum and maximum
    smallest, largest = arr[0], arr[0]
    for x in arr:
        # a smaller value is found | lower the minimum if needed | check against the minimum
        if x < smallest:
            smallest = x
        # a larger value is found | raise the maximum if needed | check against the maximum
        if x > largest:
            largest = x
    # the gap between the extremes | maximum minus minimum | return their difference
    return largest - smallest


@family(
    titles=[
        "second largest element in an array of non-negative numbers",
        "find the largest value that is strictly smaller than the maximum, or -1",
        "runner-up of the array: the next distinct value below the biggest one",
        "given an array of non-negative integers, return its second highest distinct value",
        "program to get the second maximum in one traversal, -1 if there is none",
        "which element of {arr} would be the greatest if the maximum were removed everywhere",
        "second biggest different number of a list, with -1 when all are equal",
        "value ranked number two among the distinct elements of the array",
    ],
    cases=[(([12, 35, 1, 10, 34, 1],), 34), (([10, 10, 10],), -1), (([10, 5, 10],), 5), (([7],), -1), (([0, 1],), 0)],
)
def second_largest_element(arr: list[int]) -> int:
    # no value is known yet | both places are empty | initialise the two best values with -1
    first, second = -1, -1
    for x in arr:
        # a new maximum pushes the old one down | the element beats the largest | found a bigger element than the best one
        if x > first:
            second = first
            first = x
        # the element lies between the two | smaller than the largest but above the second | a better runner-up
        elif first > x > second:
            second = x
    return second


@family(
    titles=[
        "rotate an array to the left by {d} positions",
        "left rotation of {arr} by {d} steps into a new array",
        "shift every element {d} places towards the front, wrapping around at the start",
        "move the first {d} elements behind the others",
        "program for cyclic rotation of an array to the left",
        "given an array and a number {d}, return the array turned left {d} times",
        "array after its beginning of length {d} has been carried to the end",
    ],
    cases=[
        (([1, 2, 3, 4, 5], 2), [3, 4, 5, 1, 2]),
        (([1, 2, 3], 0), [1, 2, 3]),
        (([1, 2, 3], 4), [2, 3, 1]),
        (([9], 5), [9]),
        (([4, 5, 6, 7], 4), [4, 5, 6, 7]),
    ],
)
def rotate_array_left(arr: list[int], d: int) -> list[int]:
    n = len(arr)
    # array for the rotated elements | create the result array | allocate an array of the same size
    rotated = [0] * n
    # fill every position of the result | loop over the target indices | for each index of the new array
    for i in range(n):
        # take the element {d} places ahead, wrapping around | copy from index {i} + {d} modulo the size | wrap past the end
        rotated[i] = arr[(i + d) % n]
    return rotated


@family(
    titles=[
        "cyclically rotate an array clockwise by one",
        "move the last element of the array to the front",
        "shift all elements one place to the right; the last one becomes the first",
        "rotate {arr} right by a single position in place",
        "program to bring the final element to index 0 and push the others back by one",
        "given a non-empty array, perform one right rotation",
        "one step of cyclic shifting to the right inside the same array",
    ],
    cases=[(([1, 2, 3, 4, 5],), [5, 1, 2, 3, 4]), (([7],), [7]), (([1, 2],), [2, 1]), (([9, 8, 7],), [7, 9, 8])],
)
def rotate_right_by_one(arr: list[int]) -> list[int]:
    n = len(arr)
    # remember the last element | save the final value | store the last element before it is overwritten
    last = arr[n - 1]
    # go backwards over the array | from the end down to the second position | shift elements starting at the end
    for i in range(n - 1, 0, -1):
        # copy the left neighbour | move the previous element one place right | take over the value before it
        arr[i] = arr[i - 1]
    # put the saved value at the front | the last element becomes the first | write it to index zero
    arr[0] = last
    return arr


@family(
    titles=[
        "reverse an array in place",
        "program to turn {arr} around with two pointers",
        "swap the elements from both ends until the middle is reached",
        "given an array, put its elements in the opposite order",
        "last element first: invert the order of the array without extra memory",
        "write the array backwards by exchanging symmetric positions",
        "flip an integer array end to end",
    ],
    cases=[(([1, 2, 3, 4],), [4, 3, 2, 1]), (([],), []), (([5],), [5]), (([1, 2, 3],), [3, 2, 1]), (([0, 0, 9],), [9, 0, 0])],
)
def reverse_array_in_place(arr: list[int]) -> list[int]:
    # pointers at both ends | start from the first and the last index | one index on each side
    left, right = 0, len(arr) - 1
    # until the pointers meet | while the left index is below the right one | continue up to the middle
    while left < right:
        # exchange the two elements | swap the values at both pointers | switch the outer elements
        arr[left], arr[right] = arr[right], arr[left]
        # move both pointers inwards | step towards the middle | shrink the range
        left += 1
        right -= 1
    return arr


@family(
    titles=[
        "reverse an array in groups of {K} elements",
        "turn around each consecutive block of {K} elements",
        "given an array, invert every stretch of length {K}, where the last stretch may be shorter",
        "split {arr} into chunks of {K} and reverse each of them in place",
        "program to reverse an array group by group, with {K} elements in a group",
        "flip the order of the first {K} values, then of the next {K}, and so on to the end",
        "blockwise reversal of an array, {K} numbers at a time",
    ],
    cases=[
        (([1, 2, 3, 4, 5],), [3, 2, 1, 5, 4]),
        (([1, 2, 3, 4, 5, 6],), [3, 2, 1, 6, 5, 4]),
        (([7, 8],), [8, 7]),
        (([6],), [6]),
        (([],), []),
    ],
    holes={"K": (3, 2, 4, 5)},
)
def reverse_in_groups(arr: list[int]) -> list[int]:
    n = len(arr)
    # go to the start of each group | jump from group to group | step through the array by {K}
    for start in range(0, n, K):
        left = start
        # the last group may be shorter | right end of the group, not past the array | limit the group to the array size
        right = min(start + K - 1, n - 1)
        # reverse the group | swap from both ends of the group | exchange elements until the middle
        while left < right:
            arr[left], arr[right] = arr[right], arr[left]
            left += 1
            right -= 1
    return arr


@family(
    titles=[
        "prefix sum array",
        "running totals of {arr}",
        "build an array whose element i is the sum of the first i + 1 numbers",
        "given an array, return its cumulative sums",
        "replace each value by the sum of itself and everything before it",
        "program to compute partial sums from the left",
        "for every index, how much do the elements up to and including it add to",
    ],
    cases=[(([10, 20, 10, 5, 15],), [10, 30, 40, 45, 60]), (([],), []), (([4],), [4]), (([1, -1, 1, -1],), [1, 0, 1, 0])],
)
def prefix_sum_array(arr: list[int]) -> list[int]:
    n = len(arr)
    prefix = [0] * n
    # sum of the elements seen so far | nothing is accumulated yet | start the running total at 0
    running = 0
    for i in range(n):
        # extend the running total | add the current element | include {arr}[{i}] in the sum
        running += arr[i]
        # store the partial sum | write the total at this index | save the sum of the prefix
        prefix[i] = running
    return prefix


@family(
    titles=[
        "replace every element with the greatest element on its right side",
        "each number becomes the maximum of the numbers after it, the last one becomes -1",
        "for every position find the largest value to the right, using -1 for the final position",
        "next greatest element of the suffix: rewrite {arr} in place",
        "given an array, overwrite each entry by the biggest later entry",
        "program to substitute elements by the maximum of the remaining suffix",
        "scan from the right and put into each cell the largest value that follows it (-1 at the end)",
    ],
    cases=[
        (([16, 17, 4, 3, 5, 2],), [17, 5, 5, 5, 2, -1]),
        (([7],), [-1]),
        (([1, 2, 3],), [3, 3, -1]),
        (([9, 8, 8],), [8, 8, -1]),
        (([],), []),
    ],
)
def replace_with_greatest_on_right(arr: list[int]) -> list[int]:
    # nothing stands right of the last element | the suffix is empty at first | initialise the maximum with -1
    greatest = -1
    # go from right to left | traverse the array backwards | start at the last index and move left
    for i in range(len(arr) - 1, -1, -1):
        current = arr[i]
        # write the maximum of the right side | replace the element | put the greatest later value here
        arr[i] = greatest
        # the old value may be the new maximum | update the greatest value | compare with the original element
        if current > greatest:
            greatest = current
    return arr


@family(
    titles=[
        "leaders in an array",
        "find all elements that are greater than every element to their right",
        "collect, from right to left, the values larger than all values after them",
        "an element is a leader if nothing on its right is as large; list the leaders from the last to the first",
        "which numbers of {arr} dominate the whole part of the array behind them",
        "program to print leaders while scanning the array from the end",
        "given an array, return its strict suffix maxima in order of appearance from the back",
    ],
    cases=[(([16, 17, 4, 3, 5, 2],), [2, 5, 17]), (([1, 2, 3],), [3]), (([3, 2, 1],), [1, 2, 3]), (([4, 4],), [4]), (([8],), [8])],
)
def array_leaders(arr: list[int]) -> Vec[int]:
    leaders: Vec[int] = []
    n = len(arr)
    # the last element is always a leader | nothing follows the last element | start with the rightmost element
    best = arr[n - 1]
    leaders.append(best)
    # check the others from right to left | scan backwards from the last but one | walk towards the front
    for i in range(n - 2, -1, -1):
        # larger than everything on its right | the element beats the best so far | a new leader
        if arr[i] > best:
            best = arr[i]
            leaders.append(best)
    return leaders


@family(
    titles=[
        "move all zeroes to the end of the array",
        "push the zeros of {arr} behind the other numbers, keeping their order",
        "shift non-zero elements to the front without changing their relative order",
        "given an array, collect its zeros at the back in place",
        "program to rearrange an array so that every 0 comes last",
        "stable removal of zeros to the tail of a list",
        "non-zero values first in original order, then all the zeros",
    ],
    cases=[
        (([1, 2, 0, 4, 3, 0, 5, 0],), [1, 2, 4, 3, 5, 0, 0, 0]),
        (([0, 0, 1],), [1, 0, 0]),
        (([0],), [0]),
        (([3, 1],), [3, 1]),
        (([],), []),
    ],
)
def move_zeroes_to_end(arr: list[int]) -> list[int]:
    # position for the next non-zero element | no non-zero element placed yet | where to write next
    count = 0
    for i in range(len(arr)):
        # a non-zero element goes to the front | if the element is not zero | skip the zeros
        if arr[i] != 0:
            # swap it with the first free position | exchange it with the element at {count} | move it forward
            arr[i], arr[count] = arr[count], arr[i]
            count += 1
    return arr


@family(
    titles=[
        "sum of the multiples of {K} in an array",
        "add those elements of {arr} that are divisible by {K}",
        "total of all numbers in the list which leave no remainder when divided by {K}",
        "given non-negative integers, accumulate only the ones that {K} divides",
        "program to add up array entries divisible by {K}",
        "how much do the array values that are multiples of {K} sum to",
        "ignore everything not divisible by {K} and return the sum of the rest",
    ],
    cases=[(([3, 4, 6, 7, 9],), 18), (([1, 2, 4],), 0), (([],), 0), (([0, 30, 31],), 30)],
    holes={"K": (3, 2, 4, 5, 6, 7)},
)
def sum_of_multiples_in_array(arr: list[int]) -> int:
    # initialise the sum | the total starts at zero | no multiple has been added yet
    total = 0
    for x in arr:
        # is the number divisible by {K} | keep only multiples of {K} | test the remainder modulo {K}
        if x % K == 0:
            # add the multiple | increase the sum by the number | include it in the total
            total += x
    return total


@family(
    titles=[
        "check whether an array is a palindrome",
        "does {arr} read the same forwards and backwards",
        "test if the list equals its own reverse",
        "program to compare elements from both ends and decide if the array is symmetric",
        "given an array, tell if it is palindromic",
        "return true when the i-th element from the front always matches the i-th from the back",
        "symmetry of an integer array about its middle",
    ],
    cases=[(([1, 2, 3, 2, 1],), True), (([1, 2, 3],), False), (([],), True), (([4, 4],), True), (([1, 0],), False)],
)
def is_array_palindrome(arr: list[int]) -> bool:
    n = len(arr)
    # compare the first half with the second half | only half of the array is needed | loop up to the middle
    for i in range(n // 2):
        # elements at mirrored positions differ | compare both ends | mismatch between front and back
        if arr[i] != arr[n - 1 - i]:
            return False
    # no mismatch was found | all pairs are equal | the array is symmetric
    return True


@family(
    titles=[
        "swap adjacent elements of an array pairwise",
        "exchange the elements at indices 0 and 1, 2 and 3, and so on",
        "given an array, switch every two neighbours; an odd last element stays",
        "program to swap each pair of consecutive values in {arr}",
        "pairwise exchange of neighbouring numbers in a list",
        "let every element at an even index trade places with the element right after it",
        "turn [a, b, c, d] into [b, a, d, c] for arrays of any length",
    ],
    cases=[(([1, 2, 3, 4],), [2, 1, 4, 3]), (([1, 2, 3],), [2, 1, 3]), (([],), []), (([6],), [6]), (([0, 5],), [5, 0])],
)
def swap_adjacent_pairs(arr: list[int]) -> list[int]:
    n = len(arr)
    i = 0
    # as long as a full pair is left | while there are two more elements | stop when no partner exists
    while i + 1 < n:
        # swap the pair | exchange the two neighbours | switch both elements
        arr[i], arr[i + 1] = arr[i + 1], arr[i]
        # go to the next pair | skip both elements | advance by two
        i += 2
    return arr


@family(
    titles=[
        "remove duplicates from a sorted array",
        "distinct elements of an array in ascending order",
        "keep one copy of each value of the sorted list {arr}",
        "given a sorted array, drop all repeated neighbours",
        "program to return the unique numbers of an already sorted array",
        "collapse every run of equal values in sorted data to a single value",
        "copy an ordered array and skip elements equal to the one before",
    ],
    cases=[(([1, 1, 2, 2, 2, 3],), [1, 2, 3]), (([],), []), (([5, 5, 5],), [5]), (([1, 2],), [1, 2]), (([-1, 0, 0],), [-1, 0])],
)
def remove_duplicates_from_sorted(arr: list[int]) -> Vec[int]:
    # list of the distinct values | nothing is kept yet | create the result
    result: Vec[int] = []
    for i in range(len(arr)):
        # the first element or a new value | differs from its predecessor | equal values stand side by side
        if i == 0 or arr[i] != arr[i - 1]:
            # keep this value | append the new distinct element | add it to the result
            result.append(arr[i])
    return result


@family(
    titles=[
        "interleave two arrays of the same length",
        "merge {arr1} and {arr2} alternately, starting with {arr1}",
        "given two arrays of equal size, take one element from each in turn",
        "zip two lists into a single array: first of {arr1}, first of {arr2}, second of {arr1}, second of {arr2}, ...",
        "program to weave two arrays together",
        "combine two equally long arrays so that their elements alternate",
        "array of twice the size with the first array at even and the second at odd indices",
    ],
    cases=[
        (([1, 3, 5], [2, 4, 6]), [1, 2, 3, 4, 5, 6]),
        (([], []), []),
        (([7], [8]), [7, 8]),
        (([0, 0], [1, 1]), [0, 1, 0, 1]),
    ],
)
def interleave_arrays(arr1: list[int], arr2: list[int]) -> list[int]:
    n = len(arr1)
    # the result holds both arrays | allocate room for all elements | twice as many elements are needed
    result = [0] * (2 * n)
    for i in range(n):
        # even positions come from the first array | element of {arr1} first | copy from the first array
        result[2 * i] = arr1[i]
        # odd positions come from the second array | then the element of {arr2} | copy from the second array
        result[2 * i + 1] = arr2[i]
    return result


@family(
    titles=[
        "move negative numbers to the beginning of an array, keeping the order",
        "stable separation: all negative values first, the others after them",
        "rearrange {arr} so that negatives come before zeros and positives",
        "given an array with mixed signs, list its negative numbers and then its non-negative numbers",
        "program to put the elements below zero in front without changing relative positions",
        "two passes over the array: first copy the negative elements, then the rest",
        "segregate negative and non-negative integers in their original order",
    ],
    cases=[
        (([-12, 11, -13, -5, 6],), [-12, -13, -5, 11, 6]),
        (([1, 2],), [1, 2]),
        (([0, -1],), [-1, 0]),
        (([],), []),
        (([-3, -2],), [-3, -2]),
    ],
)
def negatives_first(arr: list[int]) -> Vec[int]:
    result: Vec[int] = []
    # first pass: negative numbers | collect the elements below zero | copy all negatives
    for x in arr:
        if x < 0:
            result.append(x)
    # second pass: the remaining numbers | collect zeros and positives | copy all non-negative elements
    for x in arr:
        if x >= 0:
            result.append(x)
    return result


@family(
    titles=[
        "product of the array except the element itself, without division",
        "for each index multiply all the other elements",
        "build an array where entry i is the product of every number of {arr} but the i-th",
        "given an array, find the product puzzle: all elements multiplied together leaving one out",
        "program that combines prefix and suffix products",
        "replace each number by the product of everything left and right of it",
        "exclusive products of an integer array in linear time",
    ],
    cases=[
        (([1, 2, 3, 4],), [24, 12, 8, 6]),
        (([5, 0, 2],), [0, 10, 0]),
        (([7],), [1]),
        (([3, -2],), [-2, 3]),
        (([10, 3, 5, 6, 2],), [180, 600, 360, 300, 900]),
    ],
)
def product_except_self(arr: list[int]) -> list[int]:
    n = len(arr)
    result = [0] * n
    prefix = 1
    # product of all elements on the left | first pass stores prefix products | fill in the left products
    for i in range(n):
        result[i] = prefix
        prefix *= arr[i]
    suffix = 1
    # go back from the right | second pass with suffix products | now handle the right side
    for i in range(n - 1, -1, -1):
        # multiply by the product of the right side | combine left and right products | include the elements after i
        result[i] *= suffix
        suffix *= arr[i]
    return result


@family(
    titles=[
        "count the peaks of an array",
        "number of elements that are greater than both neighbours",
        "how many local maxima lie strictly inside {arr}",
        "given an array, count interior positions that are higher than the one before and the one after",
        "program to find how many hills there are in a sequence of heights",
        "tally inner elements that exceed the values directly left and right of them",
        "local maximum counter for an array; the two ends never count",
    ],
    cases=[(([1, 3, 2, 5, 4],), 2), (([1, 2, 3],), 0), (([],), 0), (([1, 2, 2, 1],), 0), (([0, 9, 0],), 1)],
)
def count_array_peaks(arr: list[int]) -> int:
    count = 0
    # skip the first and the last element | only inner elements have two neighbours | visit the interior positions
    for i in range(1, len(arr) - 1):
        # higher than both neighbours | compare with the left and the right element | the element is a local maximum
        if arr[i] > arr[i - 1] and arr[i] > arr[i + 1]:
            # one more peak | increment the counter | count this element
            count += 1
    return count


@family(
    titles=[
        "limit the elements of an array to at most {K}",
        "replace every number larger than {K} by {K}",
        "cap the values of {arr} at {K} and leave the others unchanged",
        "given an array, cut off everything above {K}",
        "program to clip integers so that none exceeds {K}",
        "array in which each element is the smaller of itself and {K}",
        "no entry may be greater than {K}: lower the ones that are",
    ],
    cases=[(([5, 12, 10, 30],), [5, 10, 10, 10]), (([],), []), (([1, 2],), [1, 2]), (([-7, 11],), [-7, 10])],
    holes={"K": (10, 5, 50, 100, 255)},
)
def cap_array_values(arr: list[int]) -> list[int]:
    n = len(arr)
    # look at every element | go over all positions | traverse the array
    for i in range(n):
        # the value is above the limit | larger than {K} | check if it exceeds {K}
        if arr[i] > K:
            # set it to {K} | lower it to the limit | overwrite it with {K}
            arr[i] = K
    return arr


@family(
    titles=[
        "maximum difference between consecutive elements of an array",
        "largest absolute gap between two neighbours in {arr}",
        "what is the biggest jump from one element to the next",
        "given at least one number, find the greatest change between adjacent positions",
        "program to measure the steepest step of a sequence, up or down",
        "compare each element with its predecessor and return the largest distance",
        "adjacent values of the array that differ most: by how much do they differ",
    ],
    cases=[(([1, 5, 2, 10],), 8), (([4],), 0), (([3, 3],), 0), (([10, -10, 0],), 20), (([1, 2, 3, 4],), 1)],
)
def largest_adjacent_gap(arr: list[int]) -> int:
    # no gap seen yet | the largest gap starts at zero | initialise the maximum
    largest = 0
    # start at the second element | each element except the first has a predecessor | loop over neighbouring pairs
    for i in range(1, len(arr)):
        # absolute difference to the previous element | distance between the neighbours | size of the step
        gap = abs(arr[i] - arr[i - 1])
        # keep the larger one | update the maximum | remember the biggest gap
        largest = max(largest, gap)
    return largest


@family(
    titles=[
        "count the elements greater than the average of the array",
        "how many numbers of {arr} lie above the mean",
        "number of values that are strictly larger than the arithmetic mean",
        "given marks of students, count those who did better than average",
        "program to count above-average entries without floating point",
        "find the total of the array, then count x with x times the size above that total",
        "elements exceeding the mean value, counted by integer arithmetic",
    ],
    cases=[(([1, 2, 3, 4],), 2), (([5, 5],), 0), (([],), 0), (([0, 0, 9],), 1), (([-4, -2],), 1)],
)
def count_above_average(arr: list[int]) -> int:
    n = len(arr)
    # sum of all elements | compute the total first | add up the array
    total = sum(arr)
    count = 0
    for x in arr:
        # compare without division | the element is above the mean | multiply by the size instead of dividing
        if x * n > total:
            # one more element above average | increase the count | count it
            count += 1
    return count


@family(
    titles=[
        "check if an array is monotonic",
        "is {arr} entirely non-increasing or entirely non-decreasing",
        "test whether the values of a list only go one way, up or down",
        "given an array, return true if it never changes direction",
        "program to decide whether a sequence is sorted ascending or descending",
        "does the array rise (or stay level) throughout, or fall (or stay level) throughout",
        "monotone sequence test with two flags",
    ],
    cases=[(([1, 2, 2, 3],), True), (([6, 5, 4, 4],), True), (([1, 3, 2],), False), (([],), True), (([7],), True), (([2, 1, 2],), False)],
)
def is_monotonic_array(arr: list[int]) -> bool:
    # assume both directions are possible | both flags are true at first | nothing has been ruled out
    increasing, decreasing = True, True
    for i in range(1, len(arr)):
        # a step up rules out decreasing | the element is larger than the previous one | the values rise here
        if arr[i] > arr[i - 1]:
            decreasing = False
        # a step down rules out increasing | the element is smaller than the previous one | the values fall here
        if arr[i] < arr[i - 1]:
            increasing = False
    # one direction must have survived | true if either flag is left | monotonic in at least one direction
    return increasing or decreasing


@family(
    titles=[
        "insert an element at a given position of an array",
        "put {x} at index {pos} and shift the later elements right",
        "build an array one longer than {arr} with {x} placed at position {pos}",
        "given an array, a value and an index, return the array after insertion",
        "program for array insertion at a specific index",
        "make room at index {pos} for the new value {x}",
        "copy the array and squeeze a number in front of the element at position {pos}",
    ],
    cases=[
        (([1, 2, 4], 3, 2), [1, 2, 3, 4]),
        (([], 5, 0), [5]),
        (([7, 8], 6, 0), [6, 7, 8]),
        (([7, 8], 9, 2), [7, 8, 9]),
    ],
)
def insert_element_at(arr: list[int], x: int, pos: int) -> list[int]:
    n = len(arr)
    # one more place is needed | array with one extra element | allocate the longer array
    result = [0] * (n + 1)
    # elements before the position stay | copy the front part | the first part keeps its indices
    for i in range(pos):
        result[i] = arr[i]
    # place the new element | write {x} at its position | store the inserted value
    result[pos] = x
    # later elements move by one | shift the back part right | copy the rest one index further
    for i in range(pos, n):
        result[i + 1] = arr[i]
    return result


@family(
    titles=[
        "remove all occurrences of a value from an array",
        "delete every element equal to {x}",
        "given {arr} and a key, return the elements that differ from the key",
        "filter a number out of a list, preserving the order of the others",
        "program to erase each appearance of {x} in an integer array",
        "keep exactly those entries of the array that are not {x}",
        "array without any copy of the given element",
    ],
    cases=[(([3, 2, 2, 3], 3), [2, 2]), (([], 1), []), (([5, 5], 5), []), (([1, 2, 3], 4), [1, 2, 3]), (([0, 1, 0, 2], 0), [1, 2])],
)
def remove_all_occurrences(arr: list[int], x: int) -> Vec[int]:
    # elements that are kept | start with an empty result | create a new list
    kept: Vec[int] = []
    # examine each element | go through the array | loop over all values
    for value in arr:
        # it is not the value to delete | keep elements different from {x} | skip copies of {x}
        if value != x:
            kept.append(value)
    return kept


@family(
    titles=[
        "alternating sum of an array",
        "add the elements at even indices and subtract the ones at odd indices",
        "compute {arr}[0] - {arr}[1] + {arr}[2] - {arr}[3] and so on",
        "given a list, sum it with signs that switch from plus to minus",
        "program to evaluate the array with alternately positive and negative sign",
        "difference between the sum at even positions and the sum at odd positions",
        "signed total of {arr} where the sign flips after every element",
    ],
    cases=[(([1, 2, 3, 4],), -2), (([],), 0), (([5],), 5), (([10, 3, 2],), 9), (([-1, -1],), 0)],
)
def alternating_array_sum(arr: list[int]) -> int:
    total = 0
    # the first element counts positive | begin with a plus sign | sign of the first term
    sign = 1
    for x in arr:
        # add the element with its sign | accumulate the signed value | include plus or minus the element
        total += sign * x
        # flip the sign | the next element gets the opposite sign | switch between plus and minus
        sign = -sign
    return total


@family(
    titles=[
        "dot product of two vectors",
        "multiply {arr1} and {arr2} element by element and add the products",
        "scalar product of two arrays of the same length",
        "given two equally long lists, find the sum of pairwise products",
        "program to calculate the inner product of integer vectors",
        "sum of {arr1}[i] times {arr2}[i] over all indices",
        "weighted total: the numbers in one array, the weights in the other",
    ],
    cases=[(([1, 2, 3], [4, 5, 6]), 32), (([], []), 0), (([2], [-7]), -14), (([1, 0], [0, 1]), 0)],
)
def dot_product(arr1: list[int], arr2: list[int]) -> int:
    # initialise the result | the product sum is zero at first | start from 0
    result = 0
    n = len(arr1)
    # go over both arrays together | for every common index | walk through the components
    for i in range(n):
        # add the product of the components | multiply matching elements and add | accumulate the pairwise product
        result += arr1[i] * arr2[i]
    return result


@family(
    titles=[
        "maximum number of consecutive ones in a binary array",
        "length of the longest block of 1s",
        "how long is the longest streak of ones in {arr}",
        "given an array of zeros and ones, find the greatest count of adjacent ones",
        "program to measure the longest run of 1 in a row",
        "count successive ones, reset at each zero, and return the best count",
        "most 1s that stand next to each other in a list of bits",
    ],
    cases=[(([1, 1, 0, 1, 1, 1],), 3), (([0, 0],), 0), (([],), 0), (([1],), 1), (([1, 0, 1, 0],), 1)],
)
def max_consecutive_ones(arr: list[int]) -> int:
    # current run and longest run | both lengths start at zero | no ones counted so far
    count, best = 0, 0
    for bit in arr:
        # a one makes the run longer | extend the current run | another one in a row
        if bit == 1:
            count += 1
            best = max(best, count)
        else:
            # a zero ends the run | reset the counter | start counting again
            count = 0
    return best


@family(
    titles=[
        "add one to a number given as an array of digits",
        "plus one: increment the integer whose decimal digits are stored in {digits}",
        "increase a number by 1 when its digits are the elements of an array",
        "given digits from most to least significant, return the digits of the next integer",
        "program to perform addition of 1 with carry on a digit array",
        "successor of a natural number represented digit by digit",
        "turn trailing nines into zeros and raise the digit before them; grow the array if all are nines",
    ],
    cases=[(([1, 2, 3],), [1, 2, 4]), (([1, 2, 9],), [1, 3, 0]), (([9, 9],), [1, 0, 0]), (([0],), [1]), (([9],), [1, 0])],
)
def add_one_to_digits(digits: list[int]) -> list[int]:
    n = len(digits)
    # start at the last digit | go from right to left | process the least significant digit first
    for i in range(n - 1, -1, -1):
        # no carry is needed | a digit below nine can be increased | stop at the first digit that is not 9
        if digits[i] < 9:
            digits[i] += 1
            return digits
        # nine becomes zero and carries | set the 9 to 0 | the carry moves on to the left
        digits[i] = 0
    # all digits were nine | one more digit is needed | the carry leaves the array
    result = [0] * (n + 1)
    result[0] = 1
    return result
