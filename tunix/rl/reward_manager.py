"""What runs the reward functions of a learner and makes one reward of what they say.

:class:`SequenceRewardManager` adds their scores up. A manager of one's own is a subclass of it
with another ``combine``, or of :class:`AbstractRewardManager`. A config's ``reward_manager``
takes the class, or a name that ``function_registry.register_reward_manager`` gave it.
"""

from tunix.rl import abstract_reward_manager
from tunix.rl.scoring import rewards

AbstractRewardManager = abstract_reward_manager.AbstractRewardManager
SequenceRewardManager = rewards.RewardManager
RewardResult = abstract_reward_manager.RewardResult
RewardFn = rewards.RewardFn
