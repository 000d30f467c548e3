// Tie the page together: unpack, draw, search, and tell the story of what is chosen.
"use strict";

async function startPage() {
  const element = id => document.getElementById(id);
  const header = JSON.parse(element("header").textContent);
  const recording = new Recording(header, await readColumns(header, element("binary").textContent));
  element("binary").remove();
  const { holds, waits } = recording;

  function choose(table, row, bring) {
    timeline.select(table, row, bring);
    element("story").textContent = recording.story(table, row);
    lists.forEach(list => list.mark(list.table === table ? row : NOBODY));
    history.replaceState(null, "", `#${table.name}-${row}`);
  }

  // An address that ends in #wait-12 or #hold-3 leads to it.
  function follow() {
    const found = /^#(wait|hold)-(\d+)$/.exec(location.hash), table = found && recording[found[1] + "s"];
    if (table && Number(found[2]) < table.count) choose(table, Number(found[2]), true);
  }

  function search(words) {
    const match = { hold: matching(recording, holds, words), wait: matching(recording, waits, words) };
    timeline.match = words.length ? match : null;
    timeline.later();
    lists[0].show(match.wait);
    lists[1].show(match.hold);
  }

  const timeline = new Timeline(element("timeline"), recording, choose);
  const lists = [
    new List(element("waits"), element("waits-count"), recording, waits, choose),
    new List(element("holds"), element("holds-count"), recording, holds, choose),
  ];
  const groups = [...document.querySelectorAll("table.groups")].map(each => new Groups(each));
  const flame = element("stacks") && new Flame(element("stacks"), recording);
  search([]);
  searchable(groups, [search]);
  element("fit").addEventListener("click", () => timeline.show(0, timeline.all));
  element("in").addEventListener("click", () => timeline.zoom(0.5));
  element("out").addEventListener("click", () => timeline.zoom(2));
  const [left_holds, left_waits] = recording.left_out;
  if (left_holds || left_waits) element("story").textContent =
    `This page has the longest ${holds.count.toLocaleString("en")} holds and ${waits.count.toLocaleString("en")} waits; ` +
    `${left_holds.toLocaleString("en")} shorter holds and ${left_waits.toLocaleString("en")} shorter waits are left out.`;
  follow();
  window.addEventListener("hashchange", follow);
  window.zaplock = { recording, timeline, flame, choose, search, ready: performance.now() };
  document.body.dataset.ready = "1";
}

startPage();
