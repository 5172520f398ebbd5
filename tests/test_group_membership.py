from __future__ import annotations

import asyncio

from agents_in_memory import agent, with_instance
from hypothesis import given
from hypothesis import strategies as st

from app.audit.records import Actor
from app.audit.service import AuditService
from app.groups.delivery import ConfigDelivery
from app.groups.membership import SelectorIndex
from app.groups.selectors import Requirement, Selector
from app.groups.service import GroupService, GroupSpec, Scope

ACTOR = Actor("api-key", "k", "sre")
KEYS, VALUES = st.sampled_from(["team", "tier", "agent_type", "environment"]), st.sampled_from(["a", "b", "c", ""])
REQUIREMENTS = st.one_of(
    st.builds(Requirement, key=KEYS, operator=st.sampled_from(["In", "NotIn"]), values=st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(Requirement, key=KEYS, operator=st.sampled_from(["Exists", "DoesNotExist"])),
)
SELECTORS = st.builds(
    Selector, match_labels=st.dictionaries(KEYS, VALUES, max_size=2), match_expressions=st.lists(REQUIREMENTS, max_size=2)
)


@given(st.lists(SELECTORS, max_size=12), st.dictionaries(KEYS, VALUES))
def test_the_index_finds_exactly_the_selectors_that_match_in_order(selectors, labels):
    assert SelectorIndex(selectors).matching(labels) == [place for place, one in enumerate(selectors) if one.matches(labels)]


def test_a_selector_that_names_a_value_twice_is_found_once():
    selector = Selector(match_expressions=[Requirement(key="team", operator="In", values=["a", "a"])])
    assert SelectorIndex([selector]).matching({"team": "a"}) == [0]


async def test_who_is_in_a_group_follows_groups_labels_and_what_instances_tell(parts):
    groups = GroupService(parts.database, parts.events, AuditService(parts.database, parts.clock), parts.fleet, parts.clock)
    await groups.load()
    made = agent("prod", team="web")
    one = with_instance(made)
    parts.fleet.registry.add_agent(made)
    parts.fleet.registry.add_instance(one)
    web = await groups.create_group(GroupSpec("web", Selector(match_labels={"team": "web"})), ACTOR)
    assert web.instances == 1
    await groups.configure(Scope("group", web.id), {"collect_interval": 20}, ACTOR)
    assert groups.delivery.desired(one).config == {"collect_interval": 20}
    made.labels = {"team": "db"}
    assert groups.delivery.desired(one).config == {}
    assert (await groups.get_group(web.id)).instances == 0
    one.resource = {"os.type": "linux"}
    await groups.update_group(web.id, GroupSpec("web", Selector(match_labels={"os.type": "linux"})), ACTOR)
    assert [g.instances for g in (await groups.list_groups()).items] == [1]
    await groups.delete_group(web.id, ACTOR)
    assert groups.delivery.desired(one).config == {}


async def test_working_out_what_is_meant_for_everybody_lets_others_have_their_turn(parts):
    made = agent("prod")
    parts.fleet.registry.add_agent(made)
    for _ in range(1000):
        parts.fleet.registry.add_instance(with_instance(made))
    delivery = ConfigDelivery(parts.database, parts.events, parts.fleet.registry, parts.clock)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    await delivery.settle()
    task.cancel()
    assert turns >= 2
