"""Signatures as tests need them: types without names, names without types, and what stands above."""

import pytest

from eval.judge.signature import Function, functions, read_signature


@pytest.mark.parametrize(
    ("source", "function_type", "names"),
    [
        ("bool f(vector<float> numbers,float threshold){", "bool(vector<float>, float)", ("numbers", "threshold")),
        (
            "const string& f(const vector<int>& a, map<string, int> *b) {",
            "const string&(const vector<int>&, map<string, int> *)",
            ("a", "b"),
        ),
        ("int f ( int arr [ ], int n ) {", "int(int  [ ], int)", ("arr", "n")),
        ("long f() {", "long()", ()),
        ("int g(int y) { return y; }\nint f(int x = 3) {\n  for (;;) {", "int(int)", ("x",)),
    ],
)
def test_cpp(source: str, function_type: str, names: tuple[str, ...]) -> None:
    found = read_signature(source, "cpp")
    assert (found.name, found.function_type, found.names) == ("f", function_type, names)
    assert source.startswith(found.before + found.head)
    assert found.head.endswith("{")


@pytest.mark.parametrize(
    ("parameters", "erased"),
    [
        ("List<Double> a, double b", "List,double"),
        ("int[] a, String[][] b", "int[],String[][]"),
        ("List<List<Integer>> a, Map<String, int[]> b", "List,Map"),
        ("java.util.List<Integer>[] a", "List[]"),
        ("java.math.BigInteger [] a, Map<String,\n  java.util.List<A.B>> b", "BigInteger[],Map"),
        ("", ""),
    ],
)
def test_java(parameters: str, erased: str) -> None:
    found = read_signature(f"import java.util.*;\nclass A {{ int g() {{ return 1; }}\n  static List<Integer> f({parameters}) {{\n", "java")
    assert (found.owner, found.name, found.result, found.erased) == ("A", "f", "List<Integer>", erased)
    assert "int g()" in found.before


def test_a_variable_number_of_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a variable number of arguments cannot cross: \(int a, String... b\)"):
        read_signature("class A {\n  static int f(int a, String... b) {\n", "java")


def test_source_without_a_function_is_refused() -> None:
    with pytest.raises(ValueError, match="no function is defined"):
        read_signature("int x;", "cpp")


@pytest.mark.parametrize(
    ("lang", "source", "names"),
    [
        ("python", "def a():\n    def inner(): pass\n\n\ndef b(): pass\n", ["a", "b"]),
        ("javascript", "function a() {}\nfunction b() {}\n", ["a", "b"]),
        ("java", "class A { static int a() { return 1; } static int b() { return 2; } }", ["a", "b"]),
        ("cpp", "int a() { return 1; }\nstd::vector<int> b(int x) { return {}; }\n", ["a", "b"]),
        ("javascript", "const a = function () {};\nlet b = (x) => { const c = () => x; };\nvar d = [1].map((x) => x);", ["a", "b"]),
        ("cpp", "int* a(int n) { vector<int> v(n); return 0; }\nstruct S { int c() { return 1; } };\nint d(int f(int)) {}", ["a", "d"]),
        ("cpp", "this is no code {{{", []),
    ],
)
def test_functions_of_a_program(lang: str, source: str, names: list[str]) -> None:
    assert [function.name for function in functions(source, lang)] == names


def test_a_java_function_has_its_class() -> None:
    source = "class A { int a() { return new Object() { int x() { return 1; } }.x(); }\n"
    source += "  static class B { int b() { return 1; } } }\nrecord C() { int c() {} }"
    assert functions(source, "java") == [Function("a", "A"), Function("b", "A$B"), Function("c", "C")]
