"""XLCoST's token form and back to source text."""


def is_token_form(codes: list[str]) -> bool:
    return False


def decode(code: str, lang: str) -> str:
    return code
