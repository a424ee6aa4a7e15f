"""Every verifiable task by name."""

from collections.abc import Mapping

from tunix.rl.tasks import first_letter, json_object, larger_number, multiplication, task

TASKS: Mapping[str, task.Task] = {
    one.name: one
    for one in (
        larger_number.LARGER_NUMBER,
        multiplication.MULTIPLICATION,
        first_letter.FIRST_LETTER,
        json_object.JSON_OBJECT,
    )
}
