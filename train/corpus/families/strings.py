"""Problem families over strings: letters, words, encodings, brackets and substrings."""

# ruff: noqa: F821, SIM110 - a hole is a name without a value here, and the subset has neither all() nor any()
# mypy: disable-error-code="name-defined"

from ..definition import Vec, family


@family(
    titles=[
        "count the vowels in the string {s}",
        "how many letters of {s} are vowels",
        "number of a, e, i, o and u in a text, upper or lower case",
        "return the vowel count of a given sentence",
        "find out how often a vowel appears in {s}",
        "given a word, tell how many of its characters belong to aeiou",
        "tally every vowel of the input string, ignoring case",
        "compute how many vowels the text {s} contains",
    ],
    cases=[(("hello",), 2), (("AEIOU",), 5), (("rhythm",), 0), (("",), 0), (("Programming is fun",), 5)],
)
def count_vowels(s: str) -> int:
    # no vowel has been seen yet | start {count} at zero | initialise the vowel counter
    count = 0
    # walk over the lower case letters | visit every character in lower case | loop through the lowered text
    for ch in s.lower():
        # a vowel raises {count} by one | count the letter if it is one of aeiou | is this character a vowel
        if ch in "aeiou":
            count += 1
    return count


@family(
    titles=[
        "check whether the string {s} is a palindrome",
        "does {s} read the same forwards and backwards",
        "palindrome test for a word with two pointers",
        "return true if a text equals its own reverse",
        "decide if the letters of {s} are mirrored around the middle",
        "verify that a string stays the same when it is read from right to left",
        "given a word, find out if it is identical from both ends",
        "tell if the input string {s} is palindromic",
    ],
    cases=[(("racecar",), True), (("hello",), False), (("",), True), (("a",), True), (("abba",), True), (("abca",), False)],
)
def is_palindrome_string(s: str) -> bool:
    # point at both ends of the string | set one index at the start and one at the end | begin with the outermost characters
    left, right = 0, len(s) - 1
    # move inwards until the pointers meet | continue while {left} is before {right} | compare pairs up to the middle
    while left < right:
        # two different characters rule it out | a mismatch means no palindrome | stop if the pair differs
        if s[left] != s[right]:
            return False
        left += 1
        right -= 1
    # every pair was equal | no mismatch was found | all the characters matched
    return True


@family(
    titles=[
        "reverse the string {s}",
        "write the characters of {s} in the opposite order",
        "return a text backwards",
        "build the mirror image of a word, last letter first",
        "given a string, produce it from the last character to the first",
        "turn {s} around so that its end comes first",
        "flip the order of all letters in the input string",
        "print a string in reverse, one character at a time",
    ],
    cases=[(("hello",), "olleh"), (("",), ""), (("a",), "a"), (("ab cd",), "dc ba"), (("noon",), "noon")],
)
def reverse_string(s: str) -> str:
    # the reversed text is empty at first | start with an empty {result} | nothing has been copied yet
    result = ""
    # begin at the last character | put the index on the end of {s} | start from the rightmost position
    i = len(s) - 1
    # go back to the first character | move left until the string is used up | step towards the beginning
    while i >= 0:
        # append the current character | copy this letter to {result} | take over the letter at {i}
        result += s[i]
        i -= 1
    return result


@family(
    titles=[
        "check if {s} and {t} are anagrams of each other",
        "can the letters of {s} be rearranged to give {t}",
        "valid anagram: two lower case words use the same letters equally often",
        "return true when both strings contain exactly the same letters in some order",
        "decide whether one lower case word is a permutation of another",
        "compare the letter counts of two strings to detect an anagram",
        "do two words consist of identical characters with identical frequencies",
        "test two lower case strings for being anagrams",
    ],
    cases=[(("listen", "silent"), True), (("rat", "car"), False), (("", ""), True), (("a", "ab"), False), (("aab", "abb"), False)],
)
def are_anagrams(s: str, t: str) -> bool:
    # words of different lengths cannot match | anagrams must be equally long | reject unequal lengths
    if len(s) != len(t):
        return False
    # one counter for each letter of the alphabet | prepare 26 letter counts | table of letter balances
    counts = [0] * 26
    # letters of {s} add one, letters of {t} take one away | count up for {s} and down for {t} | record both words at once
    for i in range(len(s)):
        counts[ord(s[i]) - ord("a")] += 1
        counts[ord(t[i]) - ord("a")] -= 1
    # every balance has to be zero | a counter that is not zero shows a difference | all counts must cancel out
    for balance in counts:
        if balance != 0:
            return False
    return True


@family(
    titles=[
        "count how many times the letter {K} occurs in {s}",
        "number of occurrences of the character {K} in a string",
        "how often does {K} appear in the text {s}",
        "frequency of the letter {K} within a given word",
        "given a string, return the count of characters equal to {K}",
        "number of letters in the input that equal {K}",
        "tell how many characters of {s} are exactly {K}",
        "occurrences of the fixed letter {K} in a sentence",
    ],
    cases=[(("banana",), 3), (("hello",), 0), (("",), 0), (("aaaa",), 4), (("A cat and a dog",), 3)],
    holes={"K": ("a", "e", "s", "t")},
)
def count_letter_occurrences(s: str) -> int:
    # nothing has been found so far | start with a count of zero | set {count} to 0
    count = 0
    # look at each character in turn | scan the whole string | go through {s}
    for ch in s:
        # increase {count} when the character is {K} | one more {K} was found | only the letter {K} is counted
        if ch == K:
            count += 1
    return count


@family(
    titles=[
        "index of the first character of {s} that does not repeat",
        "find the first unique letter in a string and return its position, or -1",
        "position of the earliest character that occurs exactly once",
        "which index holds the first letter of {s} that appears only one time",
        "locate the first non repeating character of a word",
        "return the smallest index whose character is unique in the text, -1 if none is",
        "given a string, search for its first character without a duplicate",
        "first unique character of {s}, given as an index",
    ],
    cases=[(("leetcode",), 0), (("loveleetcode",), 2), (("aabb",), -1), (("",), -1), (("aabbc",), 4)],
)
def first_unique_index(s: str) -> int:
    # how often each character occurs | map every character to its frequency | dictionary of character counts
    counts: dict[str, int] = {}
    for ch in s:
        counts[ch] = counts.get(ch, 0) + 1
    # look through the positions from left to right | scan {s} a second time | check the characters in their order
    for i in range(len(s)):
        # a count of one means the character is unique | return the first index with frequency 1 | this letter does not repeat
        if counts[s[i]] == 1:
            return i
    # every character is repeated | there is no unique character | report -1 when nothing was found
    return -1


@family(
    titles=[
        "run length encoding of the string {s}",
        "compress a text by writing each letter followed by the length of its run",
        "replace every group of equal characters in {s} by the character and its count",
        "string compression: aaabb becomes a3b2",
        "encode consecutive repeated characters as letter and number",
        "given a string, output each run of identical letters together with its size",
        "shorten repeated characters of {s} to the character plus how often it stands in a row",
        "perform run length compression on a word",
    ],
    cases=[(("aaabb",), "a3b2"), (("abc",), "a1b1c1"), (("",), ""), (("zzzzzzzzzzzz",), "z12"), (("aabaa",), "a2b1a2")],
)
def run_length_encode(s: str) -> str:
    # the encoded text starts empty | begin with an empty {result} | nothing is encoded yet
    result = ""
    i = 0
    # handle one run after the other | repeat until all characters are used | continue to the end of the string
    while i < len(s):
        # remember where the run begins | the current run starts here | save the first index of this group
        start = i
        # skip over all equal characters | move to the end of the run | advance while the letter stays the same
        while i < len(s) and s[i] == s[start]:
            i += 1
        # write the letter and the run length | append character and count | add the group to {result}
        result += s[start] + str(i - start)
    return result


@family(
    titles=[
        "caesar cipher: shift the lower case letters of {s} by {K}",
        "encrypt a message by moving every small letter {K} places forward in the alphabet",
        "rotate each lower case letter of a string by {K} positions and keep the rest",
        "encode {s} with a caesar shift of {K}",
        "replace every lower case letter by the one {K} steps after it, wrapping from z to a",
        "apply a substitution cipher with key {K} to the text",
        "given a plain text, return its caesar encryption for the key {K}",
        "shift all small letters of a message cyclically by {K}",
    ],
    cases=[(("abc",), "def"), (("xyz",), "abc"), (("hello, world",), "khoor, zruog"), (("",), ""), (("Ab 1",), "Ae 1")],
    holes={"K": (3, 5, 7, 13)},
)
def caesar_shift(s: str) -> str:
    # collect the encrypted text here | start with an empty {result} | the cipher text is empty at first
    result = ""
    for ch in s:
        # only lower case letters are shifted | change the character if it is a small letter | is it a letter from a to z
        if ch.islower():
            # new place in the alphabet, wrapped at 26 | add {K} to the letter number modulo 26 | move {K} places around the alphabet
            offset = (ord(ch) - ord("a") + K) % 26
            result += chr(ord("a") + offset)
        else:
            # keep any other character | copy what is not a small letter | leave the character unchanged
            result += ch
    return result


@family(
    titles=[
        "count the words in the sentence {s}",
        "how many words does a text have when several spaces may stand together",
        "number of space separated words in {s}",
        "return the word count of a line of text",
        "given a sentence, find out how many words it is made of",
        "count the groups of characters between blanks in a string",
        "number of segments in a string that are divided by spaces",
        "compute how many words a string with extra spaces contains",
    ],
    cases=[(("hello world",), 2), (("",), 0), (("   ",), 0), (("  one   two three ",), 3), (("single",), 1)],
)
def count_words(s: str) -> int:
    count = 0
    # true while we are within a word | remember if the last character was part of a word | we do not stand in a word yet
    inside = False
    for ch in s:
        # a space ends the current word | leave the word at a blank | a blank separates words
        if ch == " ":
            inside = False
        # a letter after a space begins a new word | the first character of a word is counted | enter the next word
        elif not inside:
            inside = True
            count += 1
    return count


@family(
    titles=[
        "find the longest word in the sentence {s}",
        "return the word with the most letters, the first one if there is a tie",
        "which word of {s} has the greatest length",
        "split a text at spaces and pick its longest part",
        "given a sentence, output the longest of its words",
        "search a line of text for the word of maximum length",
        "determine the longest word that occurs in a string",
        "get the first word of maximal length from the text {s}",
    ],
    cases=[
        (("the quick brown fox",), "quick"),
        (("a bb ccc",), "ccc"),
        (("single",), "single"),
        (("",), ""),
        (("one two six",), "one"),
    ],
)
def longest_word(s: str) -> str:
    # no word has been chosen yet | the best word is empty at first | start with an empty {longest}
    longest = ""
    # go through the words of the sentence | split at spaces and visit each word | loop over the single words
    for word in s.split(" "):
        # keep a word that beats the best one | this word has more letters than {longest} | replace {longest} by a longer word
        if len(word) > len(longest):
            longest = word
    return longest


@family(
    titles=[
        "find the first position where {t} occurs inside {s}",
        "substring search: return the index of {t} in {s} or -1",
        "naive string matching of a pattern in a text",
        "at which index does the pattern {t} begin within the text {s}",
        "look for one string inside another and return where it starts",
        "find the needle in the haystack, -1 when it is missing",
        "locate the earliest occurrence of a pattern in a longer string",
        "check every start index of {s} for a copy of {t}",
    ],
    cases=[
        (("hello", "ll"), 2),
        (("aaaaa", "bba"), -1),
        (("hi", "hello"), -1),
        (("abc", ""), 0),
        (("mississippi", "issip"), 4),
        (("abc", "c"), 2),
    ],
)
def find_substring(s: str, t: str) -> int:
    # try every possible start | go through the indices where {t} still fits | test each position of {s}
    for i in range(len(s) - len(t) + 1):
        # number of matching characters | compare from the first letter of {t} | nothing is matched at this start yet
        j = 0
        # advance while the characters agree | extend the match as far as possible | move on as long as both letters are equal
        while j < len(t) and s[i + j] == t[j]:
            j += 1
        # the whole pattern was matched | all of {t} was found here | every character of {t} agreed
        if j == len(t):
            return i
    # no start worked | {t} does not occur in {s} | return -1 when there is no match
    return -1


@family(
    titles=[
        "check whether the brackets in {s} are balanced",
        "valid parentheses: round, square and curly brackets must close in the right order",
        "use a stack to test if every bracket of a string has its partner",
        "return true if all opening brackets of {s} are closed correctly",
        "decide if an expression made of three kinds of brackets is well formed",
        "verify the nesting of parentheses, square brackets and braces",
        "do the brackets of a string match each other",
        "given a string of brackets, tell if it is properly nested",
    ],
    cases=[
        (("()[]{}",), True),
        (("(]",), False),
        (("([{}])",), True),
        (("",), True),
        (("((",), False),
        (("}",), False),
        (("([)]",), False),
    ],
)
def has_balanced_brackets(s: str) -> bool:
    # stack of the closing brackets we wait for | codes of the expected closing brackets | remember what must be closed
    stack: Vec[int] = []
    for ch in s:
        # an opening bracket pushes its partner | push the matching closing bracket | store which bracket has to follow
        if ch == "(":
            stack.append(ord(")"))
        elif ch == "[":
            stack.append(ord("]"))
        elif ch == "{":
            stack.append(ord("}"))
        # a closing bracket must be the one on top | fail if another bracket is on top | wrong or unexpected closing bracket
        elif len(stack) == 0 or stack[-1] != ord(ch):
            return False
        else:
            stack.pop()
    # nothing may be left open | all brackets were closed if the stack is empty | balanced when no bracket remains
    return len(stack) == 0


@family(
    titles=[
        "sum of the digits that occur in the string {s}",
        "add up all numeric characters of a text",
        "given a mix of letters and digits, return the total of the digits",
        "extract every digit from {s} and sum them",
        "total value of the single digits inside an alphanumeric string",
        "what do the digits in a string add up to",
        "ignore the letters of a string and add its digits together",
        "compute the digit sum of a text that also contains letters",
    ],
    cases=[(("a1b2c3",), 6), (("12345",), 15), (("hello",), 0), (("",), 0), (("room 101, floor 9",), 11)],
)
def sum_digits_in_string(s: str) -> int:
    # the sum is zero at first | start with {total} equal to zero | initialise the digit sum
    total = 0
    # examine every character | go through the string | loop over {s}
    for ch in s:
        # only digits count | skip whatever is not a digit | is the character a digit
        if ch.isdigit():
            # add the value of the digit | turn the character into a number and add it | increase {total} by this digit
            total += ord(ch) - ord("0")
    return total


@family(
    titles=[
        "toggle the case of every letter in {s}",
        "swap upper case and lower case letters of a string",
        "turn capitals into small letters and small letters into capitals",
        "invert the case of the text {s}",
        "return a copy of a string in which each letter has the opposite case",
        "given a string, change A to a and a to A for all letters",
        "switch the letter case of each character, leaving digits and signs alone",
        "flip uppercase to lowercase and the other way round in a word",
    ],
    cases=[(("Hello World",), "hELLO wORLD"), (("abc",), "ABC"), (("XYZ",), "xyz"), (("",), ""), (("a1-B2",), "A1-b2")],
)
def toggle_case(s: str) -> str:
    # build the new text here | the output is empty at first | start from an empty {result}
    result = ""
    for ch in s:
        # a capital becomes a small letter | lower the character if it is upper case | convert upper case to lower case
        if ch.isupper():
            result += ch.lower()
        else:
            # everything else is put in upper case | a small letter becomes a capital | raise the other characters
            result += ch.upper()
    return result


@family(
    titles=[
        "check if {s} is a subsequence of {t}",
        "can {s} be obtained from {t} by deleting some characters",
        "do the letters of {s} appear in {t} in the same order",
        "return true when a word is contained in another one as a subsequence",
        "subsequence test for two strings with one pass over the longer one",
        "decide whether removing letters from {t} can leave exactly {s}",
        "given two strings, tell if the first is hidden in the second with gaps allowed",
        "verify that all characters of {s} occur in {t} one after another",
    ],
    cases=[(("abc", "ahbgdc"), True), (("axc", "ahbgdc"), False), (("", "abc"), True), (("abc", ""), False), (("aa", "ba"), False)],
)
def is_subsequence(s: str, t: str) -> bool:
    # next character of {s} to look for | index of the first unmatched letter of {s} | nothing of {s} is matched yet
    i = 0
    # read {t} from left to right | go through the characters of {t} | scan the longer string
    for ch in t:
        # move on when the wanted letter is found | this character matches the next one of {s} | one more letter of {s} is matched
        if i < len(s) and s[i] == ch:
            i += 1
    # all letters must have been found | true if {s} was matched to its end | the whole of {s} has to be matched
    return i == len(s)


@family(
    titles=[
        "hamming distance of two strings of equal length",
        "count the positions where {s} and {t} have different characters",
        "in how many places do two equally long words differ",
        "number of mismatching characters between {s} and {t}",
        "compare two strings index by index and count the differences",
        "how many substitutions turn {s} into {t}",
        "given two strings of the same size, return how many letters are not equal",
        "number of differing symbols between two code words",
    ],
    cases=[(("karolin", "kathrin"), 3), (("abc", "abc"), 0), (("", ""), 0), (("1011101", "1001001"), 2), (("ab", "ba"), 2)],
)
def hamming_distance_of_strings(s: str, t: str) -> int:
    # no difference so far | start the distance at zero | set {distance} to 0
    distance = 0
    # compare both strings position by position | walk along the two words together | visit each index
    for i in range(len(s)):
        # a mismatch adds one | the two characters are not the same | count positions with unequal letters
        if s[i] != t[i]:
            distance += 1
    return distance


@family(
    titles=[
        "remove duplicate characters from {s} and keep the first of each",
        "return the distinct characters of a string in order of appearance",
        "delete every letter that has already occurred earlier in {s}",
        "given a text, drop all repeated characters",
        "make a string whose characters are unique by leaving out later copies",
        "keep only the first occurrence of every character in a word",
        "strip {s} of letters that were seen before",
        "write each character of a string once, in its original order",
    ],
    cases=[(("banana",), "ban"), (("abc",), "abc"), (("",), ""), (("aaaa",), "a"), (("hello world",), "helo wrd")],
)
def remove_repeated_characters(s: str) -> str:
    # characters met so far | set of letters that were already used | remember what has been seen
    seen: set[str] = set()
    result = ""
    for ch in s:
        # only a new character is kept | has this character not been met before | ignore letters that are in {seen}
        if ch not in seen:
            # mark it as seen and copy it | note the character and append it | add it to {seen} and to {result}
            seen.add(ch)
            result += ch
    return result


@family(
    titles=[
        "check if {s} is a pangram",
        "does a sentence use every letter of the alphabet at least once",
        "return true when all 26 letters occur in the text {s}",
        "decide whether no letter from a to z is missing in a string",
        "pangram test that ignores case and punctuation",
        "are all letters of the english alphabet contained in {s}",
        "given a sentence, verify that it holds the complete alphabet",
        "tell if a text contains each of the twenty six letters",
    ],
    cases=[
        (("The quick brown fox jumps over the lazy dog",), True),
        (("hello world",), False),
        (("",), False),
        (("abcdefghijklmnopqrstuvwxyz",), True),
        (("abcdefghijklmnopqrstuvwxy1",), False),
    ],
)
def is_pangram(s: str) -> bool:
    # the different letters of the text | collect each letter once | set of letters found so far
    letters: set[str] = set()
    # visit all characters in lower case | ignore the case of the text | go through the lowered sentence
    for ch in s.lower():
        # spaces and signs are left out | only letters matter | put a letter into the set
        if ch.isalpha():
            letters.add(ch)
    # a pangram has 26 different letters | the whole alphabet must be present | compare with the size of the alphabet
    return len(letters) == 26


@family(
    titles=[
        "longest common prefix of all strings in {words}",
        "find the beginning that every word of a list shares",
        "return the longest start that is common to an array of strings",
        "with which letters do all the given words begin",
        "given several words, cut the first one down to their shared prefix",
        "determine the greatest prefix that occurs in each string of {words}",
        "shared leading characters of a list of words",
        "what is the longest string that all elements of {words} start with",
    ],
    cases=[
        ((["flower", "flow", "flight"],), "fl"),
        ((["dog", "racecar", "car"],), ""),
        ((["same", "same"],), "same"),
        ((["single"],), "single"),
        ((["ab", "a"],), "a"),
    ],
)
def longest_common_prefix(words: list[str]) -> str:
    # take the first word as a guess | the prefix cannot be longer than the first word | begin with the whole first word
    prefix = words[0]
    for word in words:
        # length of the part that agrees | no letter has been compared yet | count the equal leading letters from zero
        i = 0
        # go on while both have the same letter | extend the shared part | compare {prefix} and {word} letter by letter
        while i < len(prefix) and i < len(word) and prefix[i] == word[i]:
            i += 1
        # shorten the prefix to what agrees | keep only the shared letters | cut off the rest of {prefix}
        prefix = prefix[:i]
    return prefix


@family(
    titles=[
        "check whether {t} is a rotation of {s}",
        "can {s} be turned into {t} by moving letters from the front to the back",
        "are two strings cyclic shifts of each other",
        "return true if some rotation of {s} gives {t}",
        "decide if one word is another word rotated by any amount",
        "test all rotations of a string for equality with a second string",
        "given two non empty words, tell if the second is a circular shift of the first",
        "is {t} equal to {s} after a left rotation",
    ],
    cases=[(("abcde", "cdeab"), True), (("abcde", "abced"), False), (("a", "a"), True), (("ab", "abc"), False), (("aab", "baa"), True)],
)
def is_string_rotation(s: str, t: str) -> bool:
    # a rotation keeps the length | strings of different size are no rotations | both must be equally long
    if len(s) != len(t):
        return False
    # try every place to cut {s} | go through all possible rotations | rotate by each amount
    for i in range(len(s)):
        # put the front part behind the rest | swap both parts and compare with {t} | does the rotated string equal {t}
        if s[i:] + s[:i] == t:
            return True
    # no rotation was equal | none of the shifts gave {t} | all rotations failed
    return False


@family(
    titles=[
        "convert a spreadsheet column title such as AB to its number",
        "excel column number: A is 1, Z is 26, AA is 27",
        "which column of a spreadsheet has the name {title}",
        "turn the letters of {title} into a number in base 26",
        "return the index of an excel column given by capital letters",
        "decode a column label of a spreadsheet into an integer",
        "compute the number that belongs to the column heading {title}",
        "read a column name as a number with digits A to Z",
    ],
    cases=[(("A",), 1), (("Z",), 26), (("AA",), 27), (("AB",), 28), (("ZY",), 701), (("AAA",), 703)],
)
def column_title_to_number(title: str) -> int:
    # the column number so far | start at zero | nothing has been read yet
    number = 0
    # read the letters from left to right | process each letter of {title} | take one letter at a time
    for ch in title:
        # A counts as 1 and Z as 26 | value of the letter | place of the letter in the alphabet
        digit = ord(ch) - ord("A") + 1
        # shift by one place in base 26 and add the letter | multiply by 26 before adding | append the digit in base 26
        number = number * 26 + digit
    return number


@family(
    titles=[
        "reverse the order of the words in {s}",
        "write a sentence with its last word first",
        "return the words of a text from the last to the first, each spelled as before",
        "turn hello big world into world big hello",
        "given a sentence, swap its words end for end",
        "put the words of {s} in opposite order and join them with spaces",
        "flip a sentence word by word without changing the words",
        "arrange the words of a string backwards",
    ],
    cases=[(("hello big world",), "world big hello"), (("one two",), "two one"), (("word",), "word"), (("",), ""), (("a b c",), "c b a")],
)
def reverse_word_order(s: str) -> str:
    # split the sentence into words | cut the text at the spaces | get the list of words
    words = s.split(" ")
    # start with the first and the last word | one pointer at each end of the list | indices of the outer words
    left, right = 0, len(words) - 1
    while left < right:
        # exchange the two words | swap the words at both pointers | let both words change places
        words[left], words[right] = words[right], words[left]
        left += 1
        right -= 1
    # glue the words together again | join the words with spaces | make one string of the swapped words
    return " ".join(words)


@family(
    titles=[
        "count the words of {s} that have more than {K} letters",
        "how many words in a sentence are longer than {K} characters",
        "number of long words in a text, where long means over {K} letters",
        "given a sentence, return how many of its words exceed a length of {K}",
        "tally the words whose length is greater than {K}",
        "split {s} at spaces and count the parts with length above {K}",
        "find the amount of words with at least one letter more than {K}",
        "words longer than {K} in a line of text, counted",
    ],
    cases=[(("the quick brown fox",), 2), (("a bb ccc",), 0), (("",), 0), (("four more words here",), 4), (("cat horse",), 1)],
    holes={"K": (3, 4, 5, 6)},
)
def count_long_words(s: str) -> int:
    # no long word was found yet | begin counting at zero | set {count} to zero
    count = 0
    # look at the words one by one | visit each word between spaces | go through the words of {s}
    for word in s.split(" "):
        # the word has more than {K} letters | count words over {K} characters | compare its length with {K}
        if len(word) > K:
            count += 1
    return count


@family(
    titles=[
        "split {s} into pieces of {K} characters",
        "cut a string into chunks of length {K}, the last one may be shorter",
        "divide a text into blocks of {K} letters",
        "return the list of parts that arise when {s} is broken after every {K} characters",
        "given a string, group its letters {K} at a time",
        "partition a word into substrings of size {K}",
        "break {s} up into consecutive substrings with {K} letters each",
        "list all blocks of {K} characters that make up a string",
    ],
    cases=[(("abcdef",), ["ab", "cd", "ef"]), (("abcde",), ["ab", "cd", "e"]), (("",), []), (("a",), ["a"]), (("hi",), ["hi"])],
    holes={"K": (2, 3, 4, 5)},
)
def split_into_chunks(s: str) -> Vec[str]:
    # list of the pieces | collect the chunks here | no chunk exists yet
    chunks: Vec[str] = []
    start = 0
    # repeat until the string is used up | go on while characters are left | take chunks up to the end of {s}
    while start < len(s):
        # a chunk ends {K} characters later or at the end | do not run past the end of {s} | limit the chunk to {K} characters
        end = min(start + K, len(s))
        chunks.append(s[start:end])
        # the next chunk begins here | continue after this piece | move to the following block
        start = end
    return chunks


@family(
    titles=[
        "length of the longest substring of {s} without repeating characters",
        "find the size of the largest window in which all letters are different",
        "how long is the longest part of a string with no character twice",
        "sliding window over {s}: maximal length of a run of distinct characters",
        "return the length of the longest block of unique letters",
        "given a string, measure its longest substring whose characters are all distinct",
        "maximum number of consecutive characters without a duplicate",
        "longest stretch of a text in which nothing repeats, as a length",
    ],
    cases=[(("abcabcbb",), 3), (("bbbbb",), 1), (("pwwkew",), 3), (("",), 0), (("abba",), 2), (("abcdef",), 6)],
)
def longest_unique_substring(s: str) -> int:
    # last position of every character | where each letter was seen most recently | map a letter to its latest index
    last_seen: dict[str, int] = {}
    # left border of the window | the window starts at the beginning | first index of the current window
    start = 0
    longest = 0
    for i in range(len(s)):
        # move the border behind the earlier copy | a repeated letter shortens the window | skip past the previous occurrence
        if s[i] in last_seen:
            start = max(start, last_seen[s[i]] + 1)
        last_seen[s[i]] = i
        # keep the greatest window size | update the best length | compare with the longest window so far
        longest = max(longest, i - start + 1)
    return longest


@family(
    titles=[
        "merge {s} and {t} by taking their letters in turn",
        "interleave two strings and append the rest of the longer one",
        "mix two words: one character of {s}, one character of {t}, and so on",
        "build a string from alternating characters of two inputs",
        "weave two texts together letter by letter",
        "given two strings, combine them in zigzag order starting with the first",
        "alternate the characters of {s} with those of {t}",
        "zip two words into one, leftover letters go to the end",
    ],
    cases=[(("abc", "pqr"), "apbqcr"), (("ab", "pqrs"), "apbqrs"), (("", "xyz"), "xyz"), (("abcd", "p"), "apbcd"), (("", ""), "")],
)
def merge_alternately(s: str, t: str) -> str:
    # the merged text is empty at first | begin with an empty {result} | nothing has been merged yet
    result = ""
    # run up to the longer length | go through the positions of the longer string | visit every index of either word
    for i in range(max(len(s), len(t))):
        # take a letter of {s} if there is one | {s} comes first while it lasts | add the character of {s}
        if i < len(s):
            result += s[i]
        # then a letter of {t} if there is one | next the character of {t} | {t} follows as long as it has letters
        if i < len(t):
            result += t[i]
    return result
