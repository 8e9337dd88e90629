"""Problem families over matrices: diagonals, sums, checks, products, rotations and traversals."""

# ruff: noqa: F821 - a hole is a name without a value here
# mypy: disable-error-code="name-defined"

from ..definition import Vec, family


@family(
    titles=[
        "transpose of the matrix {matrix}",
        "swap the rows and columns of a two dimensional array",
        "turn every row of {matrix} into a column",
        "return a new matrix with element i, j moved to position j, i",
        "mirror a rectangular matrix along its main diagonal",
        "given a table of numbers, exchange its rows with its columns",
        "build the matrix whose rows are the columns of the input",
        "compute the transposed version of a rectangular grid",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6]],), [[1, 4], [2, 5], [3, 6]]),
        (([[1]],), [[1]]),
        (([[1, 2], [3, 4]],), [[1, 3], [2, 4]]),
        (([[7, 8, 9]],), [[7], [8], [9]]),
    ],
)
def transpose_matrix(matrix: list[list[int]]) -> list[list[int]]:
    # number of rows and columns | read the size of the matrix | dimensions of the input
    rows, cols = len(matrix), len(matrix[0])
    # the result has {cols} rows and {rows} columns | allocate a matrix with swapped dimensions | make room for the transpose
    result = [[0] * rows for _ in range(cols)]
    for i in range(rows):
        for j in range(cols):
            # row and column change places | copy the element to its mirrored place | write the value with swapped indices
            result[j][i] = matrix[i][j]
    return result


@family(
    titles=[
        "trace of the square matrix {matrix}",
        "sum of the elements on the main diagonal",
        "add the numbers from the top left to the bottom right corner of a square matrix",
        "compute the matrix trace",
        "total of all entries whose row index equals their column index",
        "given a square matrix, add up its principal diagonal",
        "return the sum of the diagonal values of {matrix}",
        "what do the entries on the leading diagonal add up to",
    ],
    cases=[
        (([[1, 2], [3, 4]],), 5),
        (([[5]],), 5),
        (([[1, 2, 3], [4, 5, 6], [7, 8, 9]],), 15),
        (([[-1, 0], [0, 1]],), 0),
    ],
)
def matrix_trace(matrix: list[list[int]]) -> int:
    # size of the square matrix | number of rows | count the rows of {matrix}
    n = len(matrix)
    # the sum is zero at first | start with {trace} equal to zero | initialise the diagonal sum
    trace = 0
    for i in range(n):
        # add the entry on the diagonal | row and column have the same index | take the element at {i}, {i}
        trace += matrix[i][i]
    return trace


@family(
    titles=[
        "absolute difference between the two diagonal sums of {matrix}",
        "compare the main diagonal with the other diagonal of a square matrix",
        "how far apart are the sums of both diagonals",
        "diagonal difference of a square grid of numbers",
        "subtract the secondary diagonal total from the primary one and drop the sign",
        "given a square matrix, return by how much its diagonal sums differ",
        "distance between the sum of the left to right and the right to left diagonal",
        "find the absolute value of main diagonal minus anti diagonal",
    ],
    cases=[
        (([[11, 2, 4], [4, 5, 6], [10, 8, -12]],), 15),
        (([[1, 2], [3, 4]],), 0),
        (([[7]],), 0),
        (([[1, 5], [2, 3]],), 3),
    ],
)
def diagonal_difference(matrix: list[list[int]]) -> int:
    n = len(matrix)
    # sums of the two diagonals | both totals begin at zero | set both diagonal sums to 0
    main, anti = 0, 0
    for i in range(n):
        # entry of the main diagonal | top left to bottom right | add the element at {i}, {i}
        main += matrix[i][i]
        # entry of the other diagonal | top right to bottom left | the column is counted from the right
        anti += matrix[i][n - 1 - i]
    # distance of both sums | the sign does not matter | return the absolute difference
    return abs(main - anti)


@family(
    titles=[
        "sum of each row of {matrix}",
        "return a list with the totals of all rows",
        "add up a two dimensional array row by row",
        "given a matrix, compute one sum for every row",
        "row totals of a table of numbers",
        "for every row of {matrix} find the sum of its elements",
        "array of row sums of a grid",
        "reduce each line of a matrix to the sum of its entries",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6]],), [6, 15]),
        (([[0]],), [0]),
        (([[1, -1], [2, 2], [3, 4]],), [0, 4, 7]),
        (([[10], [20]],), [10, 20]),
    ],
)
def row_sums(matrix: list[list[int]]) -> list[int]:
    # one total for each row | array of sums filled with zeros | every row sum begins at zero
    sums = [0] * len(matrix)
    # handle the rows one after the other | go through the row indices | visit each row of the matrix
    for i in range(len(matrix)):
        # add all values of the row | every element goes into the sum of its row | accumulate the row in {sums}
        for value in matrix[i]:
            sums[i] += value
    return sums


@family(
    titles=[
        "largest column sum of {matrix}",
        "find the column whose elements add up to the most and return that sum",
        "maximum over the totals of all columns",
        "what is the greatest sum that one column of a matrix reaches",
        "given a table of integers, return the biggest column total",
        "add every column of {matrix} and keep the highest result",
        "highest total among the columns of a two dimensional array",
        "determine the best column of a grid by its sum",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6]],), 9),
        (([[5, 1], [5, 2]],), 10),
        (([[-3, -1], [-2, -4]],), -5),
        (([[7]],), 7),
        (([[-1], [-2]],), -3),
    ],
)
def largest_column_sum(matrix: list[list[int]]) -> int:
    best = 0
    # look at every column | go through the columns | handle the columns from left to right
    for j in range(len(matrix[0])):
        # sum of the current column | the column total begins at zero | start a new total for this column
        total = 0
        # walk down the column | add the entries of all rows | collect the values below each other
        for i in range(len(matrix)):
            total += matrix[i][j]
        # the first column or a larger one is kept | update the greatest sum | remember this total if it beats {best}
        if j == 0 or total > best:
            best = total
    return best


@family(
    titles=[
        "check if {matrix} is the identity matrix",
        "is a square matrix one on the diagonal and zero elsewhere",
        "return true for a unit matrix and false otherwise",
        "verify that multiplying by {matrix} changes nothing, because it is the identity",
        "decide whether a grid has ones on its main diagonal and zeros in all other cells",
        "identity test for a square two dimensional array",
        "given a square matrix, tell if it equals the unit matrix of its size",
        "do all entries of {matrix} agree with those of the identity",
    ],
    cases=[
        (([[1, 0], [0, 1]],), True),
        (([[1, 0], [1, 1]],), False),
        (([[1]],), True),
        (([[2, 0], [0, 2]],), False),
        (([[1, 0, 0], [0, 1, 0], [0, 0, 1]],), True),
    ],
)
def is_identity_matrix(matrix: list[list[int]]) -> bool:
    n = len(matrix)
    # look at every entry | go through all cells | visit each position of the matrix
    for i in range(n):
        for j in range(n):
            # one on the diagonal, zero elsewhere | value that the identity has here | what this cell must contain
            expected = 1 if i == j else 0
            # another value means it is not the identity | stop at the first wrong entry | the cell differs from what it should be
            if matrix[i][j] != expected:
                return False
    return True


@family(
    titles=[
        "check whether the square matrix {matrix} is symmetric",
        "does a matrix equal its transpose",
        "return true if the element at i, j always equals the element at j, i",
        "is {matrix} mirrored at its main diagonal",
        "decide if swapping rows and columns leaves a square matrix unchanged",
        "symmetry test for a square grid of numbers",
        "verify that the upper half of a matrix repeats the lower half",
        "given a square array, tell if it is symmetric about the diagonal",
    ],
    cases=[
        (([[1, 2], [2, 1]],), True),
        (([[1, 2], [3, 4]],), False),
        (([[9]],), True),
        (([[1, 7, 3], [7, 4, 5], [3, 5, 6]],), True),
        (([[1, 7, 3], [7, 4, 5], [3, 0, 6]],), False),
    ],
)
def is_symmetric_matrix(matrix: list[list[int]]) -> bool:
    # go through all rows | visit each row of the square matrix | take every row index
    for i in range(len(matrix)):
        # only the part below the diagonal is needed | columns to the left of the diagonal | each pair is compared once
        for j in range(i):
            # an unequal pair breaks the symmetry | compare the entry with its mirror image | the two mirrored values must agree
            if matrix[i][j] != matrix[j][i]:
                return False
    # all pairs are equal | no difference was found | the matrix equals its transpose
    return True


@family(
    titles=[
        "multiply the matrices {a} and {b}",
        "matrix product of two rectangular arrays",
        "compute rows of {a} times columns of {b}",
        "return the product of two matrices with fitting sizes",
        "matrix multiplication with three nested loops",
        "given two matrices, find their product",
        "combine {a} and {b} by the row by column rule",
        "work out the matrix that results from multiplying two others",
    ],
    cases=[
        (([[1, 2], [3, 4]], [[5, 6], [7, 8]]), [[19, 22], [43, 50]]),
        (([[2]], [[3]]), [[6]]),
        (([[1, 2, 3]], [[4], [5], [6]]), [[32]]),
        (([[1], [2]], [[3, 4]]), [[3, 4], [6, 8]]),
    ],
)
def multiply_matrices(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    # sizes of both factors | rows of {a}, shared size and columns of {b} | read the three dimensions
    rows, inner = len(a), len(b)
    cols = len(b[0])
    # the product is filled with zeros | allocate the result matrix | start from a zero matrix
    result = [[0] * cols for _ in range(rows)]
    for i in range(rows):
        for j in range(cols):
            # multiply row {i} by column {j} | scalar product of a row and a column | sum over the shared index
            for k in range(inner):
                result[i][j] += a[i][k] * b[k][j]
    return result


@family(
    titles=[
        "rotate the square matrix {matrix} by 90 degrees clockwise",
        "turn an image a quarter to the right",
        "return a square grid after one clockwise quarter turn",
        "the first row of {matrix} becomes the last column: rotate by ninety degrees",
        "given an n by n picture, turn it clockwise",
        "clockwise rotation of a two dimensional square array",
        "move every cell of a square matrix as in a right turn",
        "rotate an n by n table of numbers to the right by 90 degrees",
    ],
    cases=[
        (([[1, 2], [3, 4]],), [[3, 1], [4, 2]]),
        (([[1, 2, 3], [4, 5, 6], [7, 8, 9]],), [[7, 4, 1], [8, 5, 2], [9, 6, 3]]),
        (([[5]],), [[5]]),
        (([[1, 1], [0, 0]],), [[0, 1], [0, 1]]),
    ],
)
def rotate_matrix_clockwise(matrix: list[list[int]]) -> list[list[int]]:
    # side length of the square | number of rows and columns | size of the picture
    n = len(matrix)
    # the rotated matrix | make an empty matrix of the same size | allocate the output
    result = [[0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            # row {i} becomes a column counted from the right | put the cell where the turn takes it | the column turns into the row
            result[j][n - 1 - i] = matrix[i][j]
    return result


@family(
    titles=[
        "list the elements of {matrix} in spiral order",
        "walk around a matrix from the outside to the inside",
        "spiral traversal of a rectangular grid, clockwise from the top left",
        "return all values of a matrix layer by layer in clockwise order",
        "read a two dimensional array along a spiral",
        "given a matrix, output its entries ring after ring",
        "go right, down, left and up through {matrix} until every cell is visited",
        "unroll a rectangular table clockwise into a list",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6], [7, 8, 9]],), [1, 2, 3, 6, 9, 8, 7, 4, 5]),
        (([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]],), [1, 2, 3, 4, 8, 12, 11, 10, 9, 5, 6, 7]),
        (([[1]],), [1]),
        (([[1, 2, 3]],), [1, 2, 3]),
        (([[1], [2], [3]],), [1, 2, 3]),
    ],
)
def spiral_order(matrix: list[list[int]]) -> Vec[int]:
    result: Vec[int] = []
    # borders of the part not visited yet | first and last row and column of the ring | limits of the current layer
    top, bottom = 0, len(matrix) - 1
    left, right = 0, len(matrix[0]) - 1
    while top <= bottom and left <= right:
        # top row to the right, then right column down | go right and down | upper and right side of the ring
        for j in range(left, right + 1):
            result.append(matrix[top][j])
        for i in range(top + 1, bottom + 1):
            result.append(matrix[i][right])
        # bottom row to the left, then left column up | go left and up | the other two sides if the ring has them
        if top < bottom and left < right:
            for j in range(right - 1, left - 1, -1):
                result.append(matrix[bottom][j])
            for i in range(bottom - 1, top, -1):
                result.append(matrix[i][left])
        # move on to the inner ring | shrink the borders | make all borders one step tighter
        top += 1
        bottom -= 1
        left += 1
        right -= 1
    return result


@family(
    titles=[
        "find a saddle point of {matrix}: smallest in its row and largest in its column",
        "return the element that is a row minimum and a column maximum, or -1",
        "search a matrix for its saddle point value",
        "which entry is minimal within its row and at the same time maximal within its column",
        "saddle point of a table of distinct positive numbers, -1 if there is none",
        "lucky number in a matrix: the least of the row and the greatest of the column",
        "given a grid, look for a value that is lowest in its row but highest in its column",
        "determine the row minimum of {matrix} that no other value of its column exceeds",
    ],
    cases=[
        (([[3, 7, 8], [9, 11, 13], [15, 16, 17]],), 15),
        (([[1, 10, 4, 2], [9, 3, 8, 7], [15, 16, 17, 12]],), 12),
        (([[1, 2], [4, 3]],), 3),
        (([[5]],), 5),
        (([[1, 4], [3, 2]],), -1),
    ],
)
def saddle_point(matrix: list[list[int]]) -> int:
    for row in matrix:
        # column of the smallest value | find the row minimum | index of the least element of the row
        column = 0
        for j in range(len(row)):
            if row[j] < row[column]:
                column = j
        # is it the largest of its column | compare it with the whole column | no other row may have more in this column
        is_largest = True
        for other in matrix:
            if other[column] > row[column]:
                is_largest = False
        # both conditions hold | this is the saddle point | the row minimum is also the column maximum
        if is_largest:
            return row[column]
    # there is no saddle point | nothing was found | report -1
    return -1


@family(
    titles=[
        "sum of the boundary elements of {matrix}",
        "add up the outer ring of a matrix",
        "total of the first and last row and the first and last column, corners once",
        "given a grid, return the sum of the cells on its border",
        "sum all entries that lie on the edge of a two dimensional array",
        "perimeter sum of a rectangular matrix",
        "what do the frame cells of {matrix} add up to",
        "compute the total of the outermost numbers of a table",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6], [7, 8, 9]],), 40),
        (([[1, 2], [3, 4]],), 10),
        (([[6]],), 6),
        (([[1, 2, 3]],), 6),
        (([[1, 1, 1, 1], [1, 9, 9, 1], [1, 1, 1, 1]],), 10),
    ],
)
def boundary_sum(matrix: list[list[int]]) -> int:
    rows, cols = len(matrix), len(matrix[0])
    # the border sum starts at zero | set {total} to 0 | nothing is added yet
    total = 0
    # visit all cells | go through every row and column | loop over the matrix
    for i in range(rows):
        for j in range(cols):
            # only cells in an outer row or column count | the cell lies on the border | skip the inner cells
            if i == 0 or i == rows - 1 or j == 0 or j == cols - 1:
                total += matrix[i][j]
    return total


@family(
    titles=[
        "check if {matrix} is a toeplitz matrix",
        "are all diagonals from top left to bottom right constant",
        "return true when every element equals its upper left neighbour",
        "toeplitz test: each descending diagonal holds a single value",
        "decide whether the values of a matrix stay equal along its diagonals",
        "given a rectangular matrix, verify that it is constant on all diagonals",
        "does each cell of {matrix} repeat the cell diagonally above it",
        "tell if a grid of numbers is a toeplitz matrix or not",
    ],
    cases=[
        (([[1, 2, 3, 4], [5, 1, 2, 3], [9, 5, 1, 2]],), True),
        (([[1, 2], [2, 2]],), False),
        (([[4]],), True),
        (([[1, 2, 3]],), True),
        (([[1, 2], [3, 1], [4, 5]],), False),
    ],
)
def is_toeplitz_matrix(matrix: list[list[int]]) -> bool:
    # skip the first row | begin with the second row | rows that have another row above
    for i in range(1, len(matrix)):
        # skip the first column | columns that have a left neighbour | begin with the second column
        for j in range(1, len(matrix[0])):
            # the diagonal changes its value | compare with the upper left neighbour | both cells lie on one diagonal
            if matrix[i][j] != matrix[i - 1][j - 1]:
                return False
    # every diagonal is constant | no diagonal changes | all neighbours were equal
    return True


@family(
    titles=[
        "count the entries of {matrix} that are divisible by {K}",
        "how many elements of a matrix are multiples of {K}",
        "number of cells whose value leaves no remainder when divided by {K}",
        "given a grid of non negative integers, count the multiples of {K}",
        "find out how often a number divisible by {K} occurs in a two dimensional array",
        "tally the values of a table that {K} divides",
        "amount of matrix elements with remainder zero modulo {K}",
        "in how many cells of {matrix} does a multiple of {K} stand",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6]],), 3),
        (([[1, 3], [5, 7]],), 0),
        (([[0]],), 1),
        (([[2, 4], [8, 16]],), 4),
    ],
    holes={"K": (2, 3, 5, 7)},
)
def count_multiples_in_matrix(matrix: list[list[int]]) -> int:
    # no multiple was found yet | start counting at zero | initialise the counter
    count = 0
    # go through the rows and their values | visit every value of the matrix | look at the entries row by row
    for row in matrix:
        for value in row:
            # the remainder modulo {K} is zero | {K} divides the value | count a multiple of {K}
            if value % K == 0:
                count += 1
    return count


@family(
    titles=[
        "search for {target} in a matrix whose rows and columns are sorted",
        "does a row and column sorted matrix contain the number {target}",
        "staircase search that begins at the top right corner",
        "find a value in a two dimensional array that increases to the right and downwards",
        "return true if {target} occurs in the sorted grid {matrix}",
        "look up a number in a sorted matrix by dropping a row or a column at each step",
        "given a matrix with ascending rows and columns, decide if a value is present",
        "search a 2d sorted matrix in linear time",
    ],
    cases=[
        (([[1, 4, 7], [2, 5, 8], [3, 6, 9]], 5), True),
        (([[1, 4, 7], [2, 5, 8], [3, 6, 9]], 10), False),
        (([[1]], 1), True),
        (([[1]], 0), False),
        (([[1, 3, 5], [7, 9, 11]], 7), True),
        (([[1, 3, 5], [7, 9, 11]], 6), False),
    ],
)
def search_sorted_matrix(matrix: list[list[int]], target: int) -> bool:
    # begin in the top right corner | first row and last column | start where one way goes up and one goes down
    i, j = 0, len(matrix[0]) - 1
    # stay within the matrix | stop when a border is crossed | continue while the cell exists
    while i < len(matrix) and j >= 0:
        if matrix[i][j] == target:
            return True
        # too large: drop this column | go left when the value is greater than {target} | larger values lie to the right
        if matrix[i][j] > target:
            j -= 1
        else:
            # too small: drop this row | otherwise go down | smaller values lie above
            i += 1
    return False


@family(
    titles=[
        "check if the square matrix {matrix} is upper triangular",
        "are all elements below the main diagonal zero",
        "return true when nothing but zeros stands under the diagonal",
        "upper triangular test for a square array",
        "decide whether a matrix has only zeros in its lower left part",
        "given a square matrix, verify that it is in upper triangle form",
        "does every entry beneath the leading diagonal of {matrix} vanish",
        "tell if the lower triangle of a grid is completely zero",
    ],
    cases=[
        (([[1, 2], [0, 3]],), True),
        (([[1, 0], [2, 3]],), False),
        (([[8]],), True),
        (([[1, 2, 3], [0, 4, 5], [0, 0, 6]],), True),
        (([[1, 2, 3], [0, 4, 5], [0, 7, 6]],), False),
    ],
)
def is_upper_triangular(matrix: list[list[int]]) -> bool:
    # the first row has nothing below the diagonal | start with the second row | go through the rows from the second on
    for i in range(1, len(matrix)):
        # columns left of the diagonal | entries below the diagonal | visit the lower triangle
        for j in range(i):
            # a nonzero value is not allowed here | stop at an entry other than zero | every such entry has to be zero
            if matrix[i][j] != 0:
                return False
    return True


@family(
    titles=[
        "shift every row of {matrix} to the right by {K} places",
        "rotate the rows of a grid {K} steps to the right, wrapping around",
        "move all columns {K} positions right, the last ones come back at the front",
        "cyclic right shift by {K} of each row of a matrix",
        "given a matrix, push its values {K} columns to the right in a circle",
        "return a matrix whose rows are rotated right {K} times",
        "turn each line of a table cyclically by {K} to the right",
        "circular shift of the columns of {matrix} by {K}",
    ],
    cases=[
        (([[1, 2, 3], [4, 5, 6]],), [[2, 3, 1], [5, 6, 4]]),
        (([[1, 2], [3, 4]],), [[1, 2], [3, 4]]),
        (([[9]],), [[9]]),
        (([[1, 2, 3, 4]],), [[3, 4, 1, 2]]),
    ],
    holes={"K": (2, 3, 4, 5)},
)
def shift_rows_right(matrix: list[list[int]]) -> list[list[int]]:
    # number of rows and columns | size of the grid | read both dimensions
    rows, cols = len(matrix), len(matrix[0])
    # a new matrix of the same size | allocate the shifted matrix | make room for the result
    result = [[0] * cols for _ in range(rows)]
    for i in range(rows):
        for j in range(cols):
            # the column moves {K} places and wraps around | new column modulo the width | place the value {K} columns further
            result[i][(j + K) % cols] = matrix[i][j]
    return result
