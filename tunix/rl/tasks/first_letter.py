"""The first letter of a common word."""

from tunix.rl.tasks import task

COMMON_WORDS = (
    "apple banana cherry orange lemon grape peach melon carrot onion potato tomato pepper garlic "
    "bread butter cheese milk sugar honey coffee water juice soup salad rice pasta pizza cake "
    "cookie table chair window door floor wall roof kitchen garden fence bridge street road city "
    "village country river lake ocean island mountain valley forest desert beach cloud rain snow "
    "storm wind sun moon star planet earth fire stone metal glass paper wood cotton wool leather "
    "shirt jacket shoes hat glove scarf pocket button needle thread basket bottle plate spoon "
    "knife fork bowl kettle oven lamp candle mirror clock watch phone radio camera computer "
    "keyboard printer pencil paint brush music guitar piano drum violin trumpet song dance movie "
    "story poem novel letter library school teacher student doctor nurse lawyer farmer baker "
    "sailor soldier king queen prince castle horse tiger lion zebra monkey elephant rabbit mouse "
    "turtle snake eagle parrot chicken duck goose sheep goat cow pig dog cat fish whale shark "
    "spider ant bee butterfly flower rose tulip tree leaf root seed grass hill cave train bus "
    "truck bicycle airplane ship boat engine wheel bell rope ladder hammer nail drill shovel "
    "summer winter spring autumn morning evening night week month year hour minute second"
)

WORDS = tuple(COMMON_WORDS.split())


def questions() -> list[task.Question]:
    """Return one question per word."""
    return [
        task.Question(
            text=f"What is the first letter of the word {word}? Answer with just the letter.",
            answer=word[0],
            key=word,
        )
        for word in WORDS
    ]


def just_the_letter(
    completions: list[str], answer: list[str], finish_reasons: list[str]
) -> list[float]:
    """Return 1 where the reply is the letter, in any case and punctuation, and ended by itself."""
    right = [
        "".join(c for c in reply if c.isalnum()).lower() == wanted
        for reply, wanted in zip(completions, answer, strict=True)
    ]
    return task.reward_where(right, finish_reasons)


def nearness(completions: list[str], answer: list[str], finish_reasons: list[str]) -> list[float]:
    """Return the mean, over the words of a reply, of how near each is to the letter.

    A word that begins with it is 1 / letters, another 0. Nothing but the letter is 1.
    """
    return task.mean_over_words(completions, answer, finish_reasons, _nearness)


def _nearness(word: str, wanted: str) -> float:
    letters = "".join(c for c in word if c.isalnum()).lower()
    return 1.0 / len(letters) if letters.startswith(wanted) else 0.0


FIRST_LETTER = task.Task(
    name="first_letter",
    questions=questions,
    reward_fn=just_the_letter,
    guide_fn=nearness,
    max_tokens_to_generate=20,
)
