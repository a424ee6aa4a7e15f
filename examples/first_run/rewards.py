"""What a reply about a review is worth: the right word, and nothing but the word."""

WORDS = {"positive", "negative"}


def right_word(prompts, completions, label):
    """Return 1 for replies that say the row's label and not the other one."""
    return [
        float({word for word in WORDS if word in reply.lower()} == {right})
        for reply, right in zip(completions, label, strict=True)
    ]


def one_word(prompt, completion, finish_reasons):
    """Return 1 for a reply of one word that ended by itself."""
    return float(len(completion.split()) == 1 and finish_reasons == "stop")
