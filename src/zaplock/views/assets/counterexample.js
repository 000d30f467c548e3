// Play a counterexample: one step forward or back, with the locks and the memory as they then are.
"use strict";

const MODES = { write: "for write", read: "for read", downgraded: "for read after a downgrade", queued: "waits in the queue" };
const KINDS = { VMA: "vma", mapped: "mapped", "torn down": "torn", TLB: "cached", "page table": "cached" };
const PACE_MS = 700;

function startPlayer() {
  const element = id => document.getElementById(id), story = JSON.parse(element("data").textContent);
  const steps = [...document.querySelectorAll(".step")], lanes = new Map();
  for (const row of story.rows) for (const one of row.memory) lanes.set(`${one.where}: ${one.what}`, one);
  let now = 0, playing = 0;

  function show(at, bring = true) {
    now = Math.min(Math.max(at, 0), steps.length - 1);
    const row = story.rows[now];
    steps.forEach((step, place) => {
      step.tabIndex = place === now ? 0 : -1;
      if (place === now) step.setAttribute("aria-current", "step"); else step.removeAttribute("aria-current");
    });
    if (bring) steps[now].scrollIntoView({ block: "nearest" });
    element("said").textContent = `${row.task}: ${row.step}${row.result && row.result !== "violation" ? " = " + row.result : ""}`;
    element("source").textContent = `${row.function} (${row.place}): ${row.source}`;
    element("changes").textContent = row.changes.length ? `changed ${row.changes.join("; ")}` : "changed nothing";
    element("locks").replaceChildren(...row.holds.map(hold => line("li", hold.mode, `${hold.lock}: ${hold.task} ${MODES[hold.mode]}`)));
    if (!row.holds.length) element("locks").append(line("li", "", "none is held"));
    element("memory").replaceChildren(...[...lanes].map(([name]) => strip(name, row.memory.filter(one => `${one.where}: ${one.what}` === name))));
    history.replaceState(null, "", `#step-${now}`);
  }

  function line(kind, style, text) {
    const made = document.createElement(kind);
    made.className = style;
    made.textContent = text;
    return made;
  }

  function strip(name, stretches) {
    const lane = line("div", "lane", ""), bars = line("div", "strip", ""), span = story.high - story.low;
    for (const one of stretches) {
      const first = Math.max(one.first, story.low), last = Math.min(one.last, story.high), bar = line("i", KINDS[one.what], "");
      bar.style.cssText = `left:${100 * (first - story.low) / span}%;width:${100 * (last - first) / span}%`;
      bar.title = `pages ${one.first} to ${one.last} ${one.about}`;
      bars.append(bar);
    }
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", stretches.map(one => `pages ${one.first} to ${one.last} ${one.about}`).join("; ") || "nothing");
    lane.append(line("span", "", name), bars);
    return lane;
  }

  function play(on) {
    clearInterval(playing);
    playing = on ? setInterval(() => (now < steps.length - 1 ? show(now + 1) : play(false)), PACE_MS) : 0;
    element("play").textContent = on ? "stop" : "play";
  }

  const move = at => { play(false); show(at); };
  steps.forEach((step, at) => step.addEventListener("click", () => move(at)));
  for (const [id, to] of [["first", () => 0], ["back", () => now - 1], ["forward", () => now + 1], ["last", () => steps.length - 1]])
    element(id).addEventListener("click", () => move(to()));
  element("play").addEventListener("click", () => {
    if (!playing && now === steps.length - 1) show(0);
    play(!playing);
  });
  document.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    const here = document.activeElement.matches(".step");
    move(now + way);
    if (here) steps[now].focus();
  });
  const follow = () => { const found = /^#step-(\d+)$/.exec(location.hash); if (found && Number(found[1]) !== now) show(Number(found[1])); return found; };
  window.addEventListener("hashchange", follow);
  if (!follow()) show(steps.length - 1, false);
  document.body.dataset.ready = "1";
}

startPlayer();
