// Where the time of waits and holds went, by stack: a flame graph of buttons, roots on top.
"use strict";

const FRAME = 20, THINNEST = 0.0015, HUES = ["#f4c27a", "#f2b08c", "#e9c46a", "#f0cfa0", "#eab676"];

class Flame {
  constructor(section, recording) {
    this.section = section;
    this.box = section.querySelector("#flame");
    this.recording = recording;
    section.hidden = !recording.stacks.length;
    if (section.hidden) return;
    section.addEventListener("change", event => this.show(this.tree(event.target.value)));
    section.querySelector("#whole").addEventListener("click", () => this.show(this.root));
    const choices = [...section.querySelectorAll("input")];
    for (const choice of choices) choice.disabled = !this.tree(choice.value).span;
    const first = choices.find(choice => !choice.disabled) || choices[0];
    first.checked = true;
    this.show(this.tree(first.value));
  }

  // What each function and those that it called took, in nanoseconds.
  tree(what) {
    const { waits, holds, stacks } = this.recording, table = what === "waited" ? waits : holds;
    this.root = { name: "all", span: 0, children: new Map() };
    for (let row = 0; row < table.count; row++) {
      const exclusive = Boolean(table.flags[row] & EXCLUSIVE);
      if (table.stack[row] === NOBODY || (table === holds && exclusive !== (what === "exclusive"))) continue;
      const [user, kernel] = stacks[table.stack[row]];
      let node = this.root;
      node.span += table.span[row];
      for (const frame of [...user].reverse().concat([...kernel].reverse().map(name => name + " (kernel)"))) {
        if (!node.children.has(frame)) node.children.set(frame, { name: frame, span: 0, children: new Map() });
        node = node.children.get(frame);
        node.span += table.span[row];
      }
    }
    return this.root;
  }

  show(top) {
    const boxes = [];
    let deepest = 0;
    const place = (node, left, depth) => {
      const wide = top.span ? node.span / top.span : 0;
      if (wide < THINNEST) return;
      deepest = Math.max(deepest, depth);
      const box = document.createElement("button"), said = `${node.name}: ${duration(node.span)}, ${(100 * wide).toFixed(1)} %`;
      box.type = "button";
      box.textContent = wide > 0.02 ? node.name : "";
      box.title = said;
      box.setAttribute("aria-label", said);
      box.style.cssText = `left:${100 * left}%;width:${100 * wide}%;top:${depth * FRAME}px`;
      box.style.setProperty("--frame", HUES[node.name.length % HUES.length]);
      box.addEventListener("click", () => this.show(node));
      boxes.push(box);
      let at = left;
      for (const child of [...node.children.values()].sort((a, b) => b.span - a.span)) {
        place(child, at, depth + 1);
        at += child.span / top.span;
      }
    };
    place(top, 0, 0);
    this.box.style.height = `${(deepest + 1) * FRAME}px`;
    this.box.replaceChildren(...boxes);
    if (!boxes.length) this.box.textContent = "none has a stack";
  }
}
