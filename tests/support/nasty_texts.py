"""Texts that tokenizers split differently."""

NASTY_TEXTS = (
    "",
    " ",
    "Hello world",
    " Hello  world   !",
    "1 12 123 1234 12345, 3.14159 and  7",
    "x=1;y = 22;  z=  333",
    "x² + ½ = Ⅳ",  # numbers, but not digits
    "\n",
    "\n\n\n\tif (a[i] != 0x1F) {\n\t\treturn -1;\n\t}\r\n\r\n}",
    "    def f(self, *args):\n        return {**args}  \n\n",
    "it's we'll I'M HE'D they've 'tis rock'n'roll 's",
    "it\u2019s \u201cquoted\u201d \u2014 well\u2026",
    "émile e\u0301mile \u1e9b\u0323 ñ n\u0303",  # composed and combining
    "नमस्ते สวัสดี שָׁלוֹם",  # marks that have no composed form
    "你好，世界！こんにちは 안녕하세요 一二三",  # noqa: RUF001
    "🙂👩‍👩‍👧🏽 ✨🇩🇪",
    "a" + " " * 40 + "b" + "\t" * 9 + "c",
    "snake_case camelCase CONST_1 __init__ a->b::c<d>",
    "==== ---- #### ....!!!???",
    "trailing space ",
    "trailing newline\n",
    "nul \x00 bell \x07 \u200b\ufeff\u00a0",
    "The <|endoftext|> token and <s>text</s>, [INST]",
    "Thank you for your email. I will get back to you tomorrow.",
)
