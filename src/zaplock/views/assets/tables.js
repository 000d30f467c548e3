// Search all holds and waits, and list the longest that match.
"use strict";

const LISTED = 200, LONG = 24;

// A row matches if each word of the query is in its thread, process, operation, size, mode, kind or stack.
function matching(recording, table, words) {
  const match = new Uint8Array(table.count).fill(1);
  const kind = table === recording.waits ? "wait" : "hold";
  for (const word of words) {
    const lanes = recording.lanes.map(lane => `${lane.comm} ${lane.tid} ${lane.process} ${lane.pid}`.toLowerCase().includes(word));
    const operations = recording.operations.map(name => name.includes(word));
    const mms = recording.mms.map(name => name.toLowerCase().includes(word));
    const modes = ["shared", "exclusive"].map(mode => mode.includes(word)), all = kind.includes(word) || (kind + "s").includes(word);
    const stacks = recording.stacks.map(parts => parts.flat().some(frame => frame.toLowerCase().includes(word)));
    const sizes = new Map(), sized = length => {
      if (!sizes.has(length)) sizes.set(length, length > 0 && bytes(length).toLowerCase().replace(" ", "").includes(word));
      return sizes.get(length);
    };
    for (let row = 0; row < table.count; row++) {
      if (!match[row]) continue;
      const op = table.op[row];
      const told = all || lanes[table.lane[row]] || (op !== NOBODY && operations[op]) || mms[table.mm[row]] ||
        modes[table.flags[row] & EXCLUSIVE] || sized(table.length[row]) || (table.stack[row] !== NOBODY && stacks[table.stack[row]]) || (kind === "hold" && table.flags[row] & DOWNGRADED && "downgraded".includes(word));
      if (!told) match[row] = 0;
    }
  }
  return match;
}

// How many match, and the longest of them: those that can't be among these are passed over.
function longestRows(table, match, most) {
  const longest = (a, b) => table.span[b] - table.span[a] || a - b;
  let count = 0, rows = [], least = -1;
  for (let row = 0; row < table.count; row++) {
    if (!match[row]) continue;
    count++;
    if (table.span[row] <= least) continue;
    rows.push(row);
    if (rows.length < 8 * most) continue;
    rows = rows.sort(longest).slice(0, most);
    least = table.span[rows[most - 1]];
  }
  return { count, rows: rows.sort(longest).slice(0, most) };
}

class List {
  constructor(element, counter, recording, table, chosen) {
    Object.assign(this, { element, counter, recording, table, by: 0, down: true });
    element.addEventListener("click", event => {
      const line = event.target.closest("tr.row");
      if (line) chosen(table, Number(line.dataset.row), true);
    });
    element.addEventListener("keydown", event => {
      const line = event.target.closest("tr.row"), step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (!line || !(step || event.key === "Enter" || event.key === " ")) return;
      event.preventDefault();
      if (!step) chosen(table, Number(line.dataset.row), true);
      else if (line[step]) this.stand(line[step]);
    });
    element.addEventListener("click", event => {
      const head = event.target.closest("th");
      if (head) this.sort([...head.parentNode.children].indexOf(head));
    });
  }

  // One row can be reached by Tab, the others from it by the arrows.
  stand(line) {
    for (const other of this.element.querySelectorAll("tr.row")) other.tabIndex = -1;
    line.tabIndex = 0;
    line.focus();
  }

  sort(column) {
    this.down = column === this.by ? !this.down : column === 0;
    this.by = column;
    this.show(this.match);
  }

  // Of what matches the longest are listed; the heads sort those.
  sorted(rows) {
    const { recording, table } = this, way = this.down ? -1 : 1;
    const value = [
      row => table.span[row], row => table.start[row], row => recording.task(table.lane[row]), row => recording.doing(table, row),
      row => recording.mode(table, row), row => recording.mms[table.mm[row]],
    ][this.by];
    const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    return rows.sort((a, b) => way * order(a, b) || a - b);
  }

  show(match) {
    this.match = match;
    const { recording, table } = this, { count, rows } = longestRows(table, match, LISTED), waits = table === recording.waits;
    this.counter.textContent = `${count.toLocaleString("en")} match, ${rows.length} longest shown`;
    const columns = [waits ? "waited" : "held", "at", "task", "operation", "mode", recording.whole ? "under" : "lock of"];
    const head = this.line("thead", "th", columns);
    [...head.querySelectorAll("th")].forEach((cell, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      cell.scope = "col";
      if (place === this.by) cell.setAttribute("aria-sort", this.down ? "descending" : "ascending");
    });
    this.element.replaceChildren(head, this.body(this.sorted(rows)));
  }

  body(rows) {
    const { recording, table } = this, body = document.createElement("tbody");
    for (const row of rows) {
      const down = table.flags[row] & DOWNGRADED ? " (downgraded)" : "";
      const line = this.cells("td", [
        duration(table.span[row]), (table.start[row] / 1e9).toFixed(6) + " s", recording.task(table.lane[row]),
        recording.doing(table, row), recording.mode(table, row) + down, recording.mms[table.mm[row]],
      ]);
      line.className = "row";
      line.dataset.row = row;
      line.tabIndex = body.children.length ? -1 : 0;
      body.append(line);
    }
    return body;
  }

  line(group, kind, texts) {
    const element = document.createElement(group);
    element.append(this.cells(kind, texts));
    return element;
  }

  cells(kind, texts) {
    const line = document.createElement("tr");
    texts.forEach((text, place) => {
      const cell = document.createElement(kind);
      cell.textContent = text;
      if (place > 1) cell.className = String(text).length > LONG ? "text long" : "text";
      line.append(cell);
    });
    return line;
  }

  mark(row) {
    for (const line of this.element.querySelectorAll("tr.row")) line.classList.toggle("chosen", Number(line.dataset.row) === row);
  }
}

// The tables by operation, thread and process: their heads sort, and the search leaves what matches.
class Groups {
  constructor(element) {
    this.element = element;
    this.body = element.tBodies[0];
    element.tHead.addEventListener("click", event => {
      const head = event.target.closest("th");
      if (head) this.sort(head);
    });
  }

  sort(head) {
    const column = [...head.parentNode.children].indexOf(head), down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const isText = head.classList.contains("text");
    const value = line => isText ? line.cells[column].textContent : worth(line.cells[column].textContent);
    const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    this.body.append(...[...this.body.rows].sort((a, b) => (down ? -1 : 1) * order(a, b)));
  }

  search(words) {
    for (const line of this.body.rows)
      line.hidden = !words.every(word => line.textContent.toLowerCase().includes(word));
  }
}

const FACTORS = { ns: 1, us: 1e3, ms: 1e6, s: 1e9, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };

// What a figure is worth, whatever its unit; what is none comes last.
function worth(text) {
  const found = /^([+-]?[\d,]+(?:\.\d+)?)(?: (\w+))?/.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) * (FACTORS[found[2]] || 1) : -Infinity;
}

// Let the search field leave what matches in these tables, and tell others which words are asked for.
function searchable(groups, others) {
  let pending = 0;
  document.getElementById("search").addEventListener("input", event => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      groups.forEach(group => group.search(words));
      others.forEach(other => other(words));
    }, 120);
  });
}
