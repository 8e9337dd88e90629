"""Problem families about sorting arrays and searching in them."""

# ruff: noqa: F821, SIM110 - a hole is a name without a value here, and the subset has neither all() nor any()
# mypy: disable-error-code="name-defined"

from ..definition import Vec, family


@family(
    titles=[
        "bubble sort",
        "sort an array by repeatedly swapping adjacent elements that are out of order",
        "bubble sort with early stop when a pass makes no swap",
        "arrange {arr} in ascending order, letting large values rise to the end",
        "program that compares neighbours pass after pass until the array is sorted",
        "given an array, sort it by exchanging wrongly ordered neighbours",
        "optimised exchange sort: stop as soon as a sweep changes nothing",
    ],
    cases=[(([5, 1, 4, 2, 8],), [1, 2, 4, 5, 8]), (([],), []), (([3],), [3]), (([2, 1, 2],), [1, 2, 2]), (([0, -1],), [-1, 0])],
)
def bubble_sort(arr: list[int]) -> list[int]:
    end = len(arr) - 1
    # a swap may be needed | assume the array is not sorted yet | flag for the loop
    swapped = True
    # repeat until a pass makes no swap | as long as something was exchanged | next pass through the array
    while swapped:
        swapped = False
        for i in range(end):
            # neighbours are in the wrong order | the left element is larger | compare adjacent elements
            if arr[i] > arr[i + 1]:
                # swap them | exchange both elements | put the larger one to the right
                arr[i], arr[i + 1] = arr[i + 1], arr[i]
                swapped = True
        # the largest element is in place | the last position is final now | the next pass can stop earlier
        end -= 1
    return arr


@family(
    titles=[
        "selection sort",
        "sort an array by repeatedly selecting the smallest remaining element",
        "in each step bring the minimum of the unsorted part to its front",
        "arrange {arr} in increasing order by choosing minima",
        "program that looks for the least element and swaps it into the next position",
        "given an array, sort it with one swap per position",
        "order a list: find the minimum of the rest, exchange it with the current place, go on",
    ],
    cases=[(([64, 25, 12, 22, 11],), [11, 12, 22, 25, 64]), (([],), []), (([1],), [1]), (([3, 3, 1],), [1, 3, 3]), (([2, -5],), [-5, 2])],
)
def selection_sort(arr: list[int]) -> list[int]:
    n = len(arr)
    # position to be filled | move the border of the sorted part | one position after the other
    for i in range(n):
        # assume the first one is the minimum | start with the current position | index of the smallest so far
        smallest = i
        # search the unsorted part | look at the remaining elements | scan everything behind it
        for j in range(i + 1, n):
            if arr[j] < arr[smallest]:
                smallest = j
        # bring the minimum to the front | swap it into place | exchange with the first unsorted element
        arr[i], arr[smallest] = arr[smallest], arr[i]
    return arr


@family(
    titles=[
        "insertion sort",
        "sort an array by inserting each element into the sorted part before it",
        "sort {arr} the way one sorts playing cards in the hand",
        "given an array, shift larger elements to the right and drop each key into its place",
        "program that grows a sorted prefix one element at a time",
        "take the next number and move it left past all greater ones until the list is ordered",
        "ascending order by insertion with shifting",
    ],
    cases=[(([12, 11, 13, 5, 6],), [5, 6, 11, 12, 13]), (([],), []), (([9],), [9]), (([1, 2, 3],), [1, 2, 3]), (([2, 2, 1],), [1, 2, 2])],
)
def insertion_sort(arr: list[int]) -> list[int]:
    # the first element alone is sorted | start with the second element | insert the elements one by one
    for i in range(1, len(arr)):
        # element to be inserted | take the next key | remember the current value
        key = arr[i]
        j = i - 1
        # shift larger elements right | make room for the key | while the left neighbour is greater than {key}
        while j >= 0 and arr[j] > key:
            arr[j + 1] = arr[j]
            j -= 1
        # insert the key | place it in the gap | put {key} at its position
        arr[j + 1] = key
    return arr


@family(
    titles=[
        "counting sort for numbers from 0 to {K}",
        "sort an array whose values lie between 0 and {K} without comparing them",
        "sort small non-negative integers, none above {K}, by counting them",
        "given an array with entries in 0..{K}, order it with a frequency table",
        "program that tallies each value up to {K} and writes the values back in order",
        "linear time sorting of {arr} when no element exceeds {K}",
        "count how often each of 0, 1, ..., {K} occurs, then refill the array",
    ],
    cases=[(([4, 2, 2, 0, 3],), [0, 2, 2, 3, 4]), (([],), []), (([5],), [5]), (([1, 0, 1, 0],), [0, 0, 1, 1])],
    holes={"K": (9, 5, 7, 20, 50, 100)},
)
def counting_sort(arr: list[int]) -> list[int]:
    # one counter for each possible value | counters for 0 to {K} | frequency table filled with zeros
    counts = [0] * (K + 1)
    # count the elements | how often does each value occur | fill the frequency table
    for x in arr:
        counts[x] += 1
    pos = 0
    # go through the values in order | from the smallest to the largest value | loop over all counters
    for value in range(K + 1):
        # write the value that many times | one copy for each occurrence | put the copies into the array
        while counts[value] > 0:
            arr[pos] = value
            pos += 1
            counts[value] -= 1
    return arr


@family(
    titles=[
        "gnome sort",
        "sort like a garden gnome: step forward if the order is right, otherwise swap and step back",
        "sort an array with a single loop that moves one index to and fro",
        "given an array, walk along it and swap backwards whenever two neighbours are out of order",
        "program for stupid sort with only one position variable",
        "ascending sort of {arr} without nested loops",
        "one-loop sorting: advance past ordered pairs, retreat after each exchange",
    ],
    cases=[(([34, 2, 10, -9],), [-9, 2, 10, 34]), (([],), []), (([1],), [1]), (([2, 1],), [1, 2]), (([5, 5, 4],), [4, 5, 5])],
)
def gnome_sort(arr: list[int]) -> list[int]:
    n = len(arr)
    # start at the front | begin with the first position | position of the gnome
    pos = 0
    # until the end is reached | while the position is inside the array | continue to the last element
    while pos < n:
        # the order is right here | at the front or not smaller than the previous element | nothing to fix, step forward
        if pos == 0 or arr[pos] >= arr[pos - 1]:
            pos += 1
        else:
            # swap and step back | exchange with the previous element and retreat | move the smaller element left
            arr[pos], arr[pos - 1] = arr[pos - 1], arr[pos]
            pos -= 1
    return arr


@family(
    titles=[
        "shell sort",
        "sort an array with gapped insertion sort, halving the gap every round",
        "diminishing increment sort, starting with half the length",
        "given an array, insertion-sort elements far apart first and then closer ones",
        "program to sort {arr} by Shell's method",
        "insertion sort with gaps n / 2, n / 4, ..., 1",
        "move elements over long distances first: sort with a shrinking step until the step is one",
    ],
    cases=[(([12, 34, 54, 2, 3],), [2, 3, 12, 34, 54]), (([],), []), (([7],), [7]), (([3, 2, 1],), [1, 2, 3]), (([0, -4],), [-4, 0])],
)
def shell_sort(arr: list[int]) -> list[int]:
    n = len(arr)
    # begin with a large gap | the first gap is half of the length | initial distance between compared elements
    gap = n // 2
    while gap > 0:
        # insertion sort with this gap | sort all elements that are {gap} apart | insert each element into its chain
        for i in range(gap, n):
            key = arr[i]
            j = i
            # shift larger elements by the gap | make room for the key | while the element {gap} before is larger
            while j >= gap and arr[j - gap] > key:
                arr[j] = arr[j - gap]
                j -= gap
            arr[j] = key
        # reduce the gap | halve the distance | continue with a smaller gap
        gap //= 2
    return arr


@family(
    titles=[
        "cyclic sort of the numbers 1 to n",
        "sort a permutation of 1..n in linear time by swapping each number to its own index",
        "put every value v of {arr} at position v - 1",
        "given an array that contains each of 1, 2, ..., n once, sort it without comparisons",
        "program to place numbers from 1 to n directly where they belong",
        "in-place ordering when the elements are exactly the first n natural numbers",
        "exchange the current element with the one at its target index until the permutation is in order",
    ],
    cases=[(([3, 1, 5, 4, 2],), [1, 2, 3, 4, 5]), (([],), []), (([1],), [1]), (([2, 1],), [1, 2]), (([2, 3, 1],), [1, 2, 3])],
)
def cyclic_sort(arr: list[int]) -> list[int]:
    i = 0
    while i < len(arr):
        # index where the number belongs | its correct position | value minus one is the target index
        target = arr[i] - 1
        # the number is in the wrong place | not at its target yet | check the current position
        if target != i:
            # send it to its place | swap it with the element at {target} | exchange with the target position
            arr[i], arr[target] = arr[target], arr[i]
        else:
            # this position is done | the number is in place, go on | move to the next index
            i += 1
    return arr


@family(
    titles=[
        "linear search",
        "find the index of {x} in an unsorted array, or -1",
        "sequential search for a key from the first element to the last",
        "given an array, return the first position that holds {x}, -1 when it is absent",
        "program to look for a value by checking the elements one after another",
        "at which index does {x} occur first in {arr}; answer -1 if it does not occur",
        "scan a list until the wanted number turns up",
    ],
    cases=[(([2, 3, 4, 10, 40], 10), 3), (([], 1), -1), (([5, 5], 5), 0), (([1, 2], 7), -1), (([8], 8), 0)],
)
def linear_search(arr: list[int], x: int) -> int:
    n = len(arr)
    # check each position | go through the array from the start | loop over all indices
    for i in range(n):
        # the element is found | compare with {x} | it equals the wanted value
        if arr[i] == x:
            return i
    # the element is not present | nothing was found | report its absence
    return -1


@family(
    titles=[
        "binary search",
        "find the position of {x} in a sorted array by halving the search range",
        "search an ordered array without duplicates in logarithmic time, -1 if the key is missing",
        "given distinct numbers in ascending order, return the index of {x} or -1",
        "program that compares the key with the middle element and discards one half",
        "iterative bisection for a value in sorted {arr}",
        "locate a key among sorted distinct elements with two boundaries and their midpoint",
    ],
    cases=[(([2, 3, 4, 10, 40], 10), 3), (([2, 3, 4], 5), -1), (([], 1), -1), (([7], 7), 0), (([1, 9], 1), 0), (([1, 9], 9), 1)],
)
def binary_search(arr: list[int], x: int) -> int:
    # search the whole array | boundaries of the search range | start with the first and the last index
    low, high = 0, len(arr) - 1
    # while the range is not empty | as long as elements are left | repeat until the boundaries cross
    while low <= high:
        # middle of the range | split the range in half | index between both boundaries
        mid = (low + high) // 2
        if arr[mid] == x:
            return mid
        # the key is in the right half | the middle element is too small | ignore the left half
        if arr[mid] < x:
            low = mid + 1
        else:
            # the key is in the left half | the middle element is too large | ignore the right half
            high = mid - 1
    return -1


@family(
    titles=[
        "first occurrence of an element in a sorted array with duplicates",
        "find the smallest index at which {x} stands in ordered {arr}, or -1",
        "binary search that keeps going left after a match",
        "given a sorted array with repetitions, return where {x} appears for the first time",
        "program to get the leftmost position of a key in logarithmic time",
        "index of the earliest copy of {x} in non-decreasing data; -1 if there is no copy",
        "starting point of the block of equal elements {x} in a sorted list",
    ],
    cases=[(([1, 2, 2, 2, 3], 2), 1), (([1, 3], 2), -1), (([], 4), -1), (([5, 5, 5], 5), 0), (([1, 2, 4, 4], 4), 2)],
)
def first_occurrence_in_sorted(arr: list[int], x: int) -> int:
    low, high = 0, len(arr) - 1
    # not found so far | no match yet | answer if the element is absent
    result = -1
    while low <= high:
        mid = (low + high) // 2
        # remember a match and continue on the left | match found, look for an earlier one | save it and search the left half
        if arr[mid] == x:
            result = mid
            high = mid - 1
        # too small, go right | the key lies in the right half | skip the left half
        elif arr[mid] < x:
            low = mid + 1
        else:
            # too large, go left | the key lies in the left half | skip the right half
            high = mid - 1
    return result


@family(
    titles=[
        "last occurrence of an element in a sorted array with duplicates",
        "find the largest index of {x} in ascending {arr}, or -1",
        "binary search for the rightmost copy of a key",
        "given a sorted array with repetitions, where does {x} appear for the last time",
        "program that narrows to the final position holding {x}, then checks it",
        "end of the block of elements equal to {x} in ordered data; -1 if the block is empty",
        "bisect for the number of elements not greater than {x} and step back by one",
    ],
    cases=[(([1, 2, 2, 2, 3], 2), 3), (([1, 3], 2), -1), (([], 4), -1), (([5, 5, 5], 5), 2), (([2, 3], 1), -1), (([1, 4, 4, 6], 4), 2)],
)
def last_occurrence_in_sorted(arr: list[int], x: int) -> int:
    # the border lies between 0 and the size | half-open search range | boundaries for the first larger element
    low, high = 0, len(arr)
    while low < high:
        mid = (low + high) // 2
        # not larger than {x}, so the border is to the right | elements up to {mid} are small enough | move right
        if arr[mid] <= x:
            low = mid + 1
        else:
            high = mid
    # the element before the border must be {x} | check the last element that is not larger | verify the match
    if low > 0 and arr[low - 1] == x:
        return low - 1
    # the key does not occur | no copy of {x} exists | report that it is missing
    return -1


@family(
    titles=[
        "position at which {x} would be inserted into a sorted array",
        "lower bound: first index whose element is not less than {x}",
        "where should {x} be inserted to keep {arr} sorted, in front of equal elements",
        "given an ordered array, count the elements smaller than {x} by bisection",
        "program to find the leftmost valid insertion point of a value",
        "smallest position with an element at least as large as {x}, or the size of the array",
        "binary search for the place a new number would take before its equals",
    ],
    cases=[(([1, 3, 5, 6], 5), 2), (([1, 3, 5, 6], 2), 1), (([1, 3, 5, 6], 7), 4), (([], 3), 0), (([2, 2, 2], 2), 0)],
)
def search_insert_position(arr: list[int], x: int) -> int:
    # the answer may be any index up to the size | search between 0 and the size | range of possible positions
    low, high = 0, len(arr)
    # until one position is left | while the range can be split | narrow the range
    while low < high:
        mid = (low + high) // 2
        # smaller elements stay in front | the position is right of {mid} | the middle element is less than {x}
        if arr[mid] < x:
            low = mid + 1
        else:
            # {mid} may be the answer | the position is at {mid} or left of it | keep the left half
            high = mid
    return low


@family(
    titles=[
        "count elements of a sorted array that are at most {K}",
        "upper bound of {K} by binary search",
        "how many numbers in the ordered array {arr} do not exceed {K}",
        "given ascending values, find the index of the first one greater than {K}",
        "program to tell in logarithmic time how many sorted entries are less than or equal to {K}",
        "bisect sorted data to the right of all elements up to {K}",
        "number of leading elements <= {K} in a non-decreasing list",
    ],
    cases=[(([1, 5, 10, 11, 20],), 3), (([],), 0), (([10, 10],), 2), (([50, 60],), 0), (([1, 2, 3],), 3)],
    holes={"K": (10, 5, 8, 20, 50, 100)},
)
def count_sorted_at_most(arr: list[int]) -> int:
    # the count lies between 0 and the size | search range for the count | boundaries of the answer
    low, high = 0, len(arr)
    while low < high:
        # middle of the range | try the element in the middle | split the range
        mid = (low + high) // 2
        # too large: the border is at or before {mid} | the middle element exceeds {K} | continue on the left
        if arr[mid] > K:
            high = mid
        else:
            # all elements up to {mid} are counted | the element is within the limit | continue on the right
            low = mid + 1
    return low


@family(
    titles=[
        "search an element in a sorted and rotated array",
        "find the index of {x} in a rotated ascending array of distinct numbers, or -1",
        "binary search when the sorted array was shifted cyclically",
        "given a sorted array turned at an unknown pivot, locate {x} in logarithmic time",
        "program to look up a key in rotated sorted data by finding the half that is in order",
        "one half of a rotated array is always sorted: use it to search for {x}",
        "position of a value in a circularly shifted increasing sequence; -1 if absent",
    ],
    cases=[
        (([5, 6, 7, 8, 9, 1, 2, 3], 3), 7),
        (([5, 6, 7, 8, 9, 1, 2, 3], 6), 1),
        (([4, 5, 1], 9), -1),
        (([], 1), -1),
        (([1, 2, 3], 2), 1),
        (([2, 1], 1), 1),
    ],
)
def search_rotated_array(arr: list[int], x: int) -> int:
    low, high = 0, len(arr) - 1
    while low <= high:
        mid = (low + high) // 2
        # the key is found | the middle element matches | compare with the middle
        if arr[mid] == x:
            return mid
        # the left half is sorted | no pivot between {low} and {mid} | the ordered part is on the left
        if arr[low] <= arr[mid]:
            # is {x} inside the sorted left half | search where {x} can be | choose a half by the value range
            if arr[low] <= x and x < arr[mid]:
                high = mid - 1
            else:
                low = mid + 1
        # the right half is sorted and holds {x} | the ordered part on the right contains {x} | {x} is in the right half
        elif arr[mid] < x and x <= arr[high]:
            low = mid + 1
        else:
            high = mid - 1
    return -1


@family(
    titles=[
        "minimum element in a sorted and rotated array",
        "find the smallest value of a rotated ascending array in logarithmic time",
        "lowest number of {arr}, which was sorted and then shifted cyclically",
        "given distinct sorted numbers rotated by an unknown amount, return the least one",
        "program to find the point where the order of a rotated array breaks and return the value there",
        "compare the middle with the last element to close in on the minimum",
        "smallest entry of a circularly shifted increasing sequence by bisection",
    ],
    cases=[(([5, 6, 1, 2, 3, 4],), 1), (([1, 2, 3],), 1), (([2, 1],), 1), (([7],), 7), (([3, 4, 5, -2],), -2)],
)
def minimum_of_rotated_array(arr: list[int]) -> int:
    # the minimum is somewhere in the array | search the whole range | start with both ends
    low, high = 0, len(arr) - 1
    # until one element is left | while the range has more than one element | narrow down to a single index
    while low < high:
        mid = (low + high) // 2
        # the minimum is right of the middle | larger than the last element of the range | the break is on the right
        if arr[mid] > arr[high]:
            low = mid + 1
        else:
            # the minimum is at {mid} or before it | the right part is in order | keep the left half with the middle
            high = mid
    return arr[low]


@family(
    titles=[
        "integer square root by binary search",
        "floor of the square root of {n} without library functions",
        "largest integer whose square does not exceed {n}, found by bisection",
        "given a non-negative number, compute its square root rounded down",
        "program that halves the interval 1..{n} to find the whole part of the root",
        "search for the greatest r with r * r <= {n} in logarithmic time, avoiding overflow by division",
        "square root of a natural number, fraction dropped, using low, middle and high",
    ],
    cases=[((16,), 4), ((0,), 0), ((1,), 1), ((8,), 2), ((99,), 9), ((2147483647,), 46340)],
)
def square_root_by_bisection(n: int) -> int:
    low, high = 1, n
    # best root so far | the root of zero is zero | answer if no root is found
    root = 0
    while low <= high:
        # middle of the interval, without overflow | candidate for the root | try the number in the middle
        mid = low + (high - low) // 2
        # the square does not exceed {n} | divide instead of multiplying | the candidate is small enough
        if mid <= n // mid:
            # save it and try larger numbers | a valid root, look for a greater one | continue in the upper half
            root = mid
            low = mid + 1
        else:
            # the candidate is too large | continue in the lower half | try smaller numbers
            high = mid - 1
    return root


@family(
    titles=[
        "jump search with blocks of {K} elements",
        "find the first index of {x} in a sorted array by jumping ahead {K} positions at a time",
        "skip through ordered {arr} in steps of {K}, then search one block linearly",
        "given a sorted array, locate {x} by block jumps of size {K}, -1 if it is missing",
        "program that leaps over {K} elements while they are too small and then walks",
        "block search in sorted data, block length {K}",
        "two-phase lookup: leap by {K} until the block may contain the key, then check its elements in turn",
    ],
    cases=[
        (([0, 1, 1, 2, 3, 5, 8, 13, 21], 8), 6),
        (([1, 2, 3], 4), -1),
        (([], 1), -1),
        (([5], 5), 0),
        (([2, 4, 6, 8, 10], 7), -1),
        (([2, 4, 6, 8, 10], 10), 4),
    ],
    holes={"K": (4, 3, 2, 5, 8)},
)
def jump_search(arr: list[int], x: int) -> int:
    n = len(arr)
    start = 0
    # jump while the block ends below the key | skip blocks that are too small | leap ahead by {K}
    while start + K <= n and arr[start + K - 1] < x:
        start += K
    # search the block element by element | linear search from here | walk through the remaining elements
    for i in range(start, n):
        # the key is found | the element matches | compare with {x}
        if arr[i] == x:
            return i
        # already past the key | elements only get larger | stop at the first greater element
        if arr[i] > x:
            break
    return -1


@family(
    titles=[
        "ternary search in a sorted array",
        "find {x} among distinct ascending numbers by splitting the range into three parts",
        "search with two middle points that divide the interval into thirds",
        "given a sorted array, return the index of {x} or -1, cutting away two thirds in each step",
        "program that compares a key with the elements at one third and two thirds of the range",
        "lookup in ordered {arr} with three-way division",
        "like binary search but with two dividing positions: locate a key in sorted distinct data",
    ],
    cases=[(([1, 2, 3, 4, 5, 6, 7], 5), 4), (([1, 3], 2), -1), (([], 1), -1), (([8], 8), 0), (([2, 4, 6], 2), 0), (([2, 4, 6], 6), 2)],
)
def ternary_search(arr: list[int], x: int) -> int:
    low, high = 0, len(arr) - 1
    while low <= high:
        # one third of the range | length of each part | distance of the middle points from the ends
        third = (high - low) // 3
        mid1, mid2 = low + third, high - third
        # check both middle points | one of them may hold the key | compare {x} with the dividing elements
        if arr[mid1] == x or arr[mid2] == x:
            return mid1 if arr[mid1] == x else mid2
        # the key is in the first part | smaller than the first dividing element | keep the left third
        if x < arr[mid1]:
            high = mid1 - 1
        # the key is in the last part | larger than the second dividing element | keep the right third
        elif x > arr[mid2]:
            low = mid2 + 1
        else:
            # the key is between both points | keep the middle third | continue in the central part
            low, high = mid1 + 1, mid2 - 1
    return -1


@family(
    titles=[
        "Dutch national flag problem",
        "sort an array that contains only 0, 1 and 2 in one pass",
        "three-way partition of zeros, ones and twos with three pointers",
        "given an array of the digits 0, 1 and 2, put equal ones together in ascending order",
        "program to sort three colours coded as 0, 1 and 2 in place",
        "move the 0s of {arr} to the front and the 2s to the back while the 1s stay in the middle",
        "single-scan ordering of a list with just the values zero, one and two",
    ],
    cases=[
        (([0, 1, 2, 0, 1, 2],), [0, 0, 1, 1, 2, 2]),
        (([2, 1, 0],), [0, 1, 2]),
        (([],), []),
        (([1],), [1]),
        (([2, 2, 0],), [0, 2, 2]),
    ],
)
def dutch_flag_sort(arr: list[int]) -> list[int]:
    # borders of the three regions | zeros before {low}, twos behind {high} | start with an unknown middle region
    low, mid, high = 0, 0, len(arr) - 1
    while mid <= high:
        # a zero goes to the front | swap a 0 into the left region | extend the region of zeros
        if arr[mid] == 0:
            arr[low], arr[mid] = arr[mid], arr[low]
            low += 1
            mid += 1
        # a one stays where it is | skip a 1 | the middle region grows
        elif arr[mid] == 1:
            mid += 1
        else:
            # a two goes to the back | swap a 2 into the right region | extend the region of twos
            arr[mid], arr[high] = arr[high], arr[mid]
            high -= 1
    return arr


@family(
    titles=[
        "partition an array around its last element",
        "Lomuto partition scheme",
        "partition step of quicksort with the final element as pivot",
        "given a non-empty array, move the values below the last one to the left of it",
        "program to rearrange {arr} so that its last element ends between the smaller and the other numbers",
        "place the pivot, taken from the end, behind all elements that are less than it",
        "one pass with a border index: swap smaller elements forward, then put the pivot at the border",
    ],
    cases=[
        (([10, 80, 30, 90, 40, 50, 70],), [10, 30, 40, 50, 70, 90, 80]),
        (([3, 2, 1],), [1, 2, 3]),
        (([5],), [5]),
        (([1, 2, 3],), [1, 2, 3]),
        (([4, 1, 4],), [1, 4, 4]),
    ],
)
def partition_by_last_element(arr: list[int]) -> list[int]:
    n = len(arr)
    # the last element is the pivot | choose the pivot | compare everything with the final element
    pivot = arr[n - 1]
    # border of the smaller elements | no smaller element found yet | next place for a smaller element
    border = 0
    for i in range(n - 1):
        # a smaller element goes to the left part | less than the pivot | swap it to the border
        if arr[i] < pivot:
            arr[i], arr[border] = arr[border], arr[i]
            border += 1
    # put the pivot between both parts | swap the pivot to the border | the pivot gets its final place
    arr[border], arr[n - 1] = arr[n - 1], arr[border]
    return arr


@family(
    titles=[
        "k-th smallest element of an array",
        "find the element that would be at place {k} if {arr} were sorted, by quickselect",
        "order statistic: the value with rank {k}, counted from 1",
        "given an array and {k}, return its {k}-th lowest number without sorting everything",
        "program to select the {k}-th smallest number by repeated partitioning",
        "which number comes {k}-th in ascending order",
        "quickselect with the last element of the range as pivot, for rank {k}",
    ],
    cases=[
        (([7, 10, 4, 3, 20, 15], 3), 7),
        (([5], 1), 5),
        (([2, 2, 1], 2), 2),
        (([9, 8, 7], 3), 9),
        (([4, -1, 6], 1), -1),
    ],
)
def kth_smallest_element(arr: list[int], k: int) -> int:
    low, high = 0, len(arr) - 1
    while low < high:
        border = low
        # partition the range around its last element | bring smaller elements to the front | compare with the pivot at {high}
        for i in range(low, high):
            if arr[i] < arr[high]:
                arr[i], arr[border] = arr[border], arr[i]
                border += 1
        # put the pivot in its final place | move the pivot to the border | swap it behind the smaller elements
        arr[border], arr[high] = arr[high], arr[border]
        # continue in the part with rank {k} | choose the side that contains the answer | narrow the range
        if border < k - 1:
            low = border + 1
        elif border > k - 1:
            high = border - 1
        else:
            return arr[border]
    return arr[low]


@family(
    titles=[
        "check whether an array is sorted in ascending order",
        "is {arr} in non-decreasing order",
        "test that no element is smaller than the one before it",
        "given an array, return true if it is already sorted from low to high",
        "program to verify the order of a list, equal neighbours allowed",
        "does each value of the array at least equal its predecessor",
        "sortedness check for integers",
    ],
    cases=[(([20, 23, 23, 45],), True), (([2, 1],), False), (([],), True), (([7],), True), (([1, 3, 2, 4],), False)],
)
def is_array_sorted(arr: list[int]) -> bool:
    n = len(arr)
    # compare each element with the previous one | start at the second element | go over neighbouring pairs
    for i in range(1, n):
        # the order is violated | a smaller element follows a larger one | out of order
        if arr[i] < arr[i - 1]:
            return False
    # no violation was found | all pairs are in order | the array is sorted
    return True


@family(
    titles=[
        "minimum number of swaps to sort a permutation of 1 to n",
        "fewest exchanges of two elements that bring 1..n into order",
        "how many swaps are needed at least to sort {arr}, which holds each of 1, 2, ..., n once",
        "given a permutation, count the swaps when every number is sent straight to its place",
        "program to find the least swaps by resolving the cycles of a permutation",
        "number of elements minus number of cycles, counted by swapping",
        "smallest count of arbitrary two-element exchanges that sorts the first n natural numbers",
    ],
    cases=[(([4, 3, 1, 2],), 3), (([1, 2, 3],), 0), (([],), 0), (([2, 1],), 1), (([2, 3, 4, 1, 5],), 3)],
)
def minimum_swaps_to_sort(arr: list[int]) -> int:
    # no swap made yet | counter for the swaps | initialise the number of swaps
    swaps = 0
    for i in range(len(arr)):
        # until the right number is here | position {i} must hold {i} + 1 | repeat while the wrong value is here
        while arr[i] != i + 1:
            # where the current number belongs | target index of the value | its correct position
            target = arr[i] - 1
            # send it home | swap it to its place | one swap puts it into the right position
            arr[i], arr[target] = arr[target], arr[i]
            swaps += 1
    return swaps


@family(
    titles=[
        "merge two sorted arrays",
        "combine ordered arrays {arr1} and {arr2} into one sorted array",
        "the merge step of merge sort",
        "given two ascending lists, build the ascending list of all their elements",
        "program that always takes the smaller front element of two sorted sequences",
        "join a pair of sorted arrays without sorting again",
        "linear time union with duplicates of two non-decreasing arrays, in order",
    ],
    cases=[
        (([1, 3, 5], [2, 4, 6]), [1, 2, 3, 4, 5, 6]),
        (([], [1]), [1]),
        (([], []), []),
        (([2, 2], [2]), [2, 2, 2]),
        (([7, 8], [1, 9]), [1, 7, 8, 9]),
    ],
)
def merge_sorted_arrays(arr1: list[int], arr2: list[int]) -> Vec[int]:
    result: Vec[int] = []
    # positions in both arrays | start at the front of each array | one index per array
    i, j = 0, 0
    # until both arrays are used up | while elements are left in either array | continue as long as something remains
    while i < len(arr1) or j < len(arr2):
        # the first array has the smaller element | {arr2} is empty or its front is not smaller | take from {arr1}
        if j == len(arr2) or (i < len(arr1) and arr1[i] <= arr2[j]):
            result.append(arr1[i])
            i += 1
        else:
            # take the element of the second array | the front of {arr2} is smaller | append from {arr2}
            result.append(arr2[j])
            j += 1
    return result


@family(
    titles=[
        "count pairs in which an element of one sorted array is greater than an element of another",
        "inversions between two sorted halves, counted while merging",
        "how many pairs (x of {arr1}, y of {arr2}) have x > y when both arrays are sorted",
        "given two ascending arrays, find the number of cross inversions in linear time",
        "program for the counting part of merge sort: elements of the left half that exceed elements of the right half",
        "for each number in sorted {arr1} count the smaller numbers in sorted {arr2}, and add these counts",
        "total of how many values in the second ordered list lie below each value of the first",
    ],
    cases=[(([2, 4, 5], [1, 3]), 5), (([], [1]), 0), (([1, 2], [3]), 0), (([3, 3], [3]), 0), (([5, 6], [1, 2, 7]), 4)],
)
def count_cross_inversions(arr1: list[int], arr2: list[int]) -> int:
    count = 0
    # number of smaller elements in the second array | pointer into {arr2} | no smaller element passed yet
    j = 0
    # go through the first array | for each element of {arr1} | handle the left elements in order
    for x in arr1:
        # pass all elements of {arr2} below it | move forward while {arr2} is smaller | advance the pointer
        while j < len(arr2) and arr2[j] < x:
            j += 1
        # each passed element forms a pair | add the number of smaller elements | {j} inversions for this element
        count += j
    return count


@family(
    titles=[
        "find a peak element by binary search",
        "index of an element that is not smaller than its neighbours, in logarithmic time",
        "climb towards the larger neighbour by bisection until a peak is reached",
        "given a non-empty array, return the position of some local maximum found by halving",
        "program to locate a peak of {arr} without scanning everything",
        "compare the middle with its right neighbour and keep the rising side",
        "local maximum search that discards half of the array each time",
    ],
    cases=[(([1, 2, 3, 1],), 2), (([5],), 0), (([1, 2, 3],), 2), (([3, 2, 1],), 0), (([1, 4, 3, 2, 0],), 1)],
)
def peak_index_by_bisection(arr: list[int]) -> int:
    low, high = 0, len(arr) - 1
    # until a single index is left | while the range has several elements | narrow down the range
    while low < high:
        # middle of the range | look at the middle element | split the range
        mid = (low + high) // 2
        # the values rise, so a peak is on the right | the right neighbour is larger | go uphill to the right
        if arr[mid] < arr[mid + 1]:
            low = mid + 1
        else:
            # a peak is at {mid} or on the left | the right neighbour is not larger | keep the left half
            high = mid
    return low


@family(
    titles=[
        "sort an array in wave form",
        "arrange {arr} so that {arr}[0] >= {arr}[1] <= {arr}[2] >= {arr}[3] ..., by sorting and swapping",
        "zigzag order: sort the numbers and exchange each pair of neighbours",
        "given an array, return it as a wave that begins with a high value",
        "program to turn sorted numbers into alternating high and low values",
        "order the elements, then swap positions 0 and 1, 2 and 3, and so forth",
        "wave arrangement starting with the second smallest number",
    ],
    cases=[
        (([10, 5, 6, 3, 2, 20],), [3, 2, 6, 5, 20, 10]),
        (([1, 2, 3],), [2, 1, 3]),
        (([],), []),
        (([4],), [4]),
        (([9, 7],), [9, 7]),
    ],
)
def sort_in_wave_form(arr: list[int]) -> list[int]:
    # sort the numbers first | bring the array into ascending order | ascending sort
    arr.sort()
    n = len(arr)
    # take every second position | go through the pairs | step over the array by two
    for i in range(0, n - 1, 2):
        # swap the pair | exchange the two neighbours | the larger one comes first
        arr[i], arr[i + 1] = arr[i + 1], arr[i]
    return arr


@family(
    titles=[
        "sum of the {K} largest elements",
        "add up the top {K} numbers of an array",
        "total of the {K} biggest values of {arr}, or of all values if there are fewer",
        "given an array of scores, return what the best {K} add to",
        "program to sort an array and sum its last {K} entries",
        "how much do the {K} highest numbers make together",
        "take the greatest {K} elements, fewer when the list is short, and return their sum",
    ],
    cases=[(([5, 1, 9, 3],), 17), (([],), 0), (([4, 6],), 10), (([2, 2, 2, 2],), 6), (([-1, -2, -3, -4],), -6)],
    holes={"K": (3, 2, 4, 5)},
)
def sum_of_largest_elements(arr: list[int]) -> int:
    # sort in ascending order | get a sorted copy | bring the numbers into order
    ordered = sorted(arr)
    n = len(arr)
    # the largest elements are at the end | index of the first one to add | the last {K} positions, at least index 0
    start = max(0, n - K)
    total = 0
    for i in range(start, n):
        # add the large element | accumulate the value | include it in the sum
        total += ordered[i]
    return total


@family(
    titles=[
        "minimum number of platforms required at a railway station",
        "greatest number of trains at the station at the same time, a train leaving at an arrival time still counts",
        "given arrival and departure times, how many platforms are needed so that no train waits",
        "sort arrivals and departures and sweep over them to find the maximum overlap",
        "program for the platform problem with two sorted time lists",
        "how many trains stand in the station together at the busiest moment",
        "maximum count of closed intervals [arrival, departure] that share a point in time",
    ],
    cases=[
        (([900, 940, 950, 1100, 1500, 1800], [910, 1200, 1120, 1130, 1900, 2000]), 3),
        (([900, 1235], [910, 1240]), 1),
        (([], []), 0),
        (([100, 200], [200, 300]), 2),
        (([5], [6]), 1),
    ],
)
def minimum_platforms(arrivals: list[int], departures: list[int]) -> int:
    # sort both time lists | order the arrivals and the departures | events in order of time
    arrivals.sort()
    departures.sort()
    leaving, best = 0, 0
    # process the trains by arrival | one arrival after the other | for each train that comes in
    for i in range(len(arrivals)):
        # trains that left before free their platform | pass all earlier departures | remove the trains that are gone
        while departures[leaving] < arrivals[i]:
            leaving += 1
        # trains in the station now | arrived minus departed | update the maximum
        best = max(best, i + 1 - leaving)
    return best


@family(
    titles=[
        "minimum number of groups whose sorted members differ by at most {K} from the next one",
        "sort the numbers and count the clusters separated by gaps larger than {K}",
        "how many chains are there if two values belong together when they are no more than {K} apart",
        "given an array, split its sorted values wherever a step exceeds {K} and count the parts",
        "program to count groups of nearby values with tolerance {K}",
        "number of clusters on a line for the positions in {arr}, neighbours at most {K} apart",
        "a new group starts at each sorted value that is over {K} above the previous one: how many groups",
    ],
    cases=[(([1, 5, 2, 10, 11],), 3), (([],), 0), (([4],), 1), (([2, 4, 6],), 1), (([9, 0],), 2)],
    holes={"K": (2, 1, 3, 4, 5, 10)},
)
def count_value_clusters(arr: list[int]) -> int:
    # nearby values become neighbours | sort the positions | ascending copy of the numbers
    ordered = sorted(arr)
    groups = 0
    for i in range(len(ordered)):
        # the first value or a large gap | the distance to the previous value is above {K} | a new group starts here
        if i == 0 or ordered[i] - ordered[i - 1] > K:
            # one more group | increase the number of groups | count the new group
            groups += 1
    return groups


@family(
    titles=[
        "h-index of a researcher",
        "largest h such that at least h papers have h or more citations",
        "given citation counts, compute the h-index by sorting",
        "sort the citations in ascending order and find the first that covers all the papers from it on",
        "program to evaluate an author's publications with the Hirsch index",
        "how many papers can be found that are each cited at least that many times",
        "maximum number h for which h entries of {citations} are not below h",
    ],
    cases=[(([3, 0, 6, 1, 5],), 3), (([],), 0), (([0, 0],), 0), (([100],), 1), (([4, 4, 4, 4],), 4)],
)
def researcher_h_index(citations: list[int]) -> int:
    n = len(citations)
    # sort the citation counts | bring the papers into ascending order | fewest citations first
    citations.sort()
    for i in range(n):
        # papers from here to the end | number of papers with at least this many citations | size of the remaining part
        papers = n - i
        # all of them are cited often enough | every remaining paper has that many citations | the h-index is found
        if citations[i] >= papers:
            return papers
    return 0


@family(
    titles=[
        "closest element to a target in a sorted array",
        "which value of the ordered array {arr} is nearest to {x}, the smaller one on a tie",
        "given ascending numbers, return the one with the least distance to {x}",
        "program with two pointers that drops the end which is farther from {x}",
        "shrink a sorted range from both sides until only the number nearest to {x} is left",
        "nearest neighbour of a number among sorted integers, ties go to the lower value",
        "discard the more distant end again and again: last survivor in a non-empty sorted list",
    ],
    cases=[(([1, 2, 4, 8], 5), 4), (([1, 3], 2), 1), (([7], 0), 7), (([1, 10, 20], 16), 20), (([-5, 5], 9), 5)],
)
def closest_in_sorted(arr: list[int], x: int) -> int:
    # both ends of the array | start with the full range | pointers to the first and the last element
    left, right = 0, len(arr) - 1
    # until one element remains | while there are two or more candidates | shrink the range
    while left < right:
        # the left end is farther away | the distance on the left is larger | drop the left element
        if abs(arr[left] - x) > abs(arr[right] - x):
            left += 1
        else:
            # the right end is not nearer | drop the right element | on a tie remove the larger one
            right -= 1
    return arr[left]
