import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmesid_jax.ingest.web_text import plain_text

SCRIPT = (
  "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();\nvar ue_csm = window;"
)


@pytest.mark.parametrize(
  ("text", "plain"),
  [
    ("L'Or &amp; Co", "L'Or & Co"),
    ("<b>Bold</b>er <i>text</i>", "Bolder text"),
    ("one<br>two<BR/>three<p class='a > b'>four</p>", "one two three four"),
    ("&lt;span class=&quot;a&quot;&gt;Card&lt;/span&gt;", "Card"),
    ("</span></span></span>", None),
    ("<script type='text/javascript'>var a = 1;</script>Card", "Card"),
    ("Card <style>p {color: red}</style> A", "Card A"),
    ("Cards <!-- hidden -->", "Cards"),
    ("<div><img src='a.jpg' alt='b'></div>", None),
    (SCRIPT, None),
    ("(function(a, b) { return a })", None),
    ("window.ue_ihb = (window.ue_ihb || window.ueinit || 0) + 1;", None),
    (".aplus p {margin: 0; color: #333}", None),
    ("document.write('x')", None),
    *((" ", None), (None, None), ("", None), ("&nbsp;", None)),
    # texts that only look like it
    *(("I <3 you", "I <3 you"), ("Size < 5 > 3", "Size < 5 > 3"), ("A<B", "A<B")),
    ("<Untitled> and </Void>", "<Untitled> and </Void>"),
    ("Multi function (timer) var. = {set of 3}", "Multi function (timer) var. = {set of 3}"),
    ("A view from the window. = nice", "A view from the window. = nice"),
  ],
)
def test_plain_text(text, plain):
  assert plain_text(text) == plain


@given(st.text(st.sampled_from("<>/!-ab&;\"' =\n[]?"), max_size=60))
def test_any_text_is_one_line_or_nothing(text):
  found = plain_text(text)
  assert found is None or (found and found == " ".join(found.split()))


@pytest.mark.parametrize(
  "part",
  [
    *("<", "<a ", '<a "', "<a '\"", "<!--", "<!", "<script", "<script>", "</script", "&lt;", "<a/"),
    *(
      "{a:",
      "var ",
      "var a",
      "function(",
      "function a(a,",
      "window.a",
      "document.",
      "</",
      "<![",
      " ",
    ),
  ],
)
def test_hostile_texts_take_linear_time(part):
  """A hundred thousand parts; in quadratic time minutes."""
  plain_text(part * 100_000)
