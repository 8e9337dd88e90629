"""Tokens are those of the language: layout and comments do not show, strings stay whole, nothing is lost."""

import pytest

from eval.lexer import code_tokens


@pytest.mark.parametrize(
    ("lang", "tight", "spaced"),
    [
        ("cpp", "int f(int x){return g(x,1)>>2;}", "int f ( int x ) {\n  return g ( x , 1 ) >> 2 ;\n}"),
        ("cpp", "#include<vector>\nvector<vector<int>> a;", "# include <vector>\nvector < vector < int > > a ;"),
        ("java", "List<List<Integer>> a=new ArrayList<>();", "List < List < Integer > > a = new ArrayList < > ( ) ;"),
        ("javascript", "const f=(x)=>{return x**2;}", "const f = ( x ) => {\n\treturn x ** 2 ; }"),
        ("python", "x=f(a,b)[0]", "x = f ( a , b ) [ 0 ]"),
    ],
)
def test_layout_gives_no_token(lang: str, tight: str, spaced: str) -> None:
    assert code_tokens(tight, lang) == code_tokens(spaced, lang)
    assert "".join(code_tokens(tight, lang)) == "".join(tight.split())


def test_a_string_is_one_token_with_its_spaces() -> None:
    assert code_tokens('x = "a  b" + f"{x} y"', "python") == ["x", "=", '"a  b"', "+", 'f"{x} y"']
    assert code_tokens("y = `a ${x} b` + '  ';", "javascript") == ["y", "=", "`a ${x} b`", "+", "'  '", ";"]
    assert code_tokens("char c = ' ';", "cpp") == ["char", "c", "=", "' '", ";"]


def test_comments_and_docstrings_give_no_token() -> None:
    assert code_tokens('def f():\n    """Adds."""\n    return 1  # one\n', "python") == ["def", "f", "(", ")", ":", "return", "1"]
    assert code_tokens("/* a */ int x; // b\n", "cpp") == ["int", "x", ";"]
    assert code_tokens("// nothing but words\n", "java") == []
    assert code_tokens("", "python") == code_tokens(" \n\t", "python") == []


def test_broken_programs_lose_no_word() -> None:
    programs = {
        "cpp": "int f( { @ return $ x ] ;",
        "python": "def f(:\n return ) x ?",
        "java": "class { § 12 int",
        "javascript": "{ => (",
    }
    for lang, broken in programs.items():
        assert "".join(code_tokens(broken, lang)) == "".join(broken.split())


def test_deep_nesting_does_not_overflow_the_stack() -> None:
    assert code_tokens("(" * 5000, "cpp").count("(") == 5000
