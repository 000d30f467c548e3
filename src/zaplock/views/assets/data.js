// Unpack the columns that Python wrote (views/html_data.py), and say durations and sizes.
"use strict";

const EXCLUSIVE = 1, DOWNGRADED = 2, COMPLETE = 4, NOBODY = -1;
const STILL_WAITING = 2;
const OUTCOMES = ["waited", "was killed after waiting", "is still waiting after"];

async function unpack(text) {
  const letters = atob(text.trim()), packed = new Uint8Array(letters.length);
  for (let at = 0; at < packed.length; at++) packed[at] = letters.charCodeAt(at);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function readColumns(header, text) {
  const buffer = await unpack(text), columns = {};
  let at = 0;
  for (const [name, kind, length] of header.layout) {
    columns[name] = kind === "int32" ? new Int32Array(buffer, at, length) : new Uint32Array(buffer, at, length);
    at += 4 * length;
  }
  return columns;
}

// A number that was cut into two halves; exact up to 2 ** 53, which is 104 days in nanoseconds.
function whole(columns, name) {
  const low = columns[name + "_low"], high = columns[name + "_high"], numbers = new Float64Array(low.length);
  for (let row = 0; row < numbers.length; row++) numbers[row] = low[row] + high[row] * 4294967296;
  return numbers;
}

function table(columns, name) {
  const start = whole(columns, name + "_start"), span = whole(columns, name + "_span");
  for (let row = 1; row < start.length; row++) start[row] += start[row - 1];
  return {
    name, start, span, count: start.length, length: whole(columns, name + "_length"),
    lane: columns[name + "_lane"], op: columns[name + "_op"], mm: columns[name + "_mm"],
    flags: columns[name + "_flags"], outcome: columns[name + "_outcome"], culprit: columns[name + "_culprit"],
    stack: columns[name + "_stack"],
  };
}

function digits(value) { return Math.abs(value) >= 999.5 ? value.toFixed(0) : String(Number(value.toPrecision(3))); }

function duration(ns) {
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["us", 1e3]]) if (Math.abs(ns) >= size) return digits(ns / size) + " " + unit;
  return ns.toFixed(0) + " ns";
}

function bytes(length) {
  for (const [unit, size] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024]])
    if (length >= size) return Number((length / size).toPrecision(4)) + " " + unit;
  return length + " B";
}

class Recording {
  constructor(header, columns) {
    Object.assign(this, header);
    this.holds = table(columns, "hold");
    this.waits = table(columns, "wait");
    this.byLane = this.lanes.map(() => ({ shared: [], downgraded: [], exclusive: [], wait: [] }));
    for (let row = 0; row < this.holds.count; row++) this.byLane[this.holds.lane[row]][this.style(row)].push(row);
    for (let row = 0; row < this.waits.count; row++) this.byLane[this.waits.lane[row]].wait.push(row);
    for (const lane of this.byLane) for (const style in lane) lane[style] = this.bars(lane[style], style === "wait" ? this.waits : this.holds);
  }

  // Their rows in the table, and their times beside each other, which is how they are drawn.
  bars(list, table) {
    const rows = Int32Array.from(list), start = new Float64Array(rows.length), span = new Float64Array(rows.length);
    for (let place = 0; place < rows.length; place++) {
      start[place] = table.start[rows[place]];
      span[place] = table.span[rows[place]];
    }
    return { rows, start, span };
  }

  // Not both ends of it were seen: it took at least as long.
  isInPart(table, row) {
    return !(table.flags[row] & COMPLETE) || (table === this.waits && table.outcome[row] === STILL_WAITING);
  }

  // Whose lock, or under which design: what sets one row apart from another.
  where(table, row) { return this.whole ? `under ${this.mms[table.mm[row]]}` : `the lock of ${this.mms[table.mm[row]]}`; }

  style(row) {
    const flags = this.holds.flags[row];
    return flags & EXCLUSIVE ? "exclusive" : flags & DOWNGRADED ? "downgraded" : "shared";
  }

  task(lane) {
    const { comm, tid } = this.lanes[lane];
    return tid === "" ? comm : comm ? `${comm} (tid ${tid})` : `tid ${tid}`;
  }

  doing(table, row) {
    const op = table.op[row];
    if (op === NOBODY) return "";
    return this.operations[op] + (table.length[row] > 0 ? " of " + bytes(table.length[row]) : "");
  }

  mode(table, row) { return table.flags[row] & EXCLUSIVE ? "exclusive" : "shared"; }

  // The stack of a hold or a wait, a function a line, innermost first.
  stackLines(table, row, whose) {
    if (table.stack[row] === NOBODY) return [];
    const [user, kernel] = this.stacks[table.stack[row]];
    return [`${whose}, innermost function first:`, ...kernel.map(frame => `    ${frame} (kernel)`), ...user.map(frame => "    " + frame)];
  }

  story(table, row) {
    return [this.told(table, row), ...this.timeLines(table, row), ...this.stackLines(table, row, "its stack"), ...this.culpritLines(table, row)].join("\n");
  }

  // Why a hold was slow.
  timeLines(table, row) { return table === this.holds ? (this.times[row] || []).map(line => "    " + line) : []; }

  culpritLines(table, row) {
    if (table !== this.waits || table.culprit[row] === NOBODY) return [];
    const hold = table.culprit[row];
    return this.timeLines(this.holds, hold).concat(this.stackLines(this.holds, hold, `the stack of ${this.task(this.holds.lane[hold])}`));
  }

  told(table, row) {
    const doing = this.doing(table, row), task = this.task(table.lane[row]) + (doing && " in " + doing);
    const at = `at ${(table.start[row] / 1e9).toFixed(6)} s`, span = duration(table.span[row]), lock = this.where(table, row);
    if (table === this.waits) {
      const lines = [`${at}: ${task} ${OUTCOMES[table.outcome[row]]} ${span} ${this.whole ? "" : "for "}${lock}, ${this.mode(table, row)}`];
      return lines.concat((this.chains[row] || ["not explained in this page (only the longest waits are)"]).map(line => "    " + line)).join("\n");
    }
    const notes = [];
    if (table.flags[row] & DOWNGRADED) notes.push(table.flags[row] & EXCLUSIVE ? "ended by a downgrade" : "began by a downgrade");
    if (!(table.flags[row] & COMPLETE)) notes.push("seen in part");
    return `${at}: ${task} held ${this.whole ? "the lock " + this.mode(table, row) + " for " + span + " " + lock : lock + " " + this.mode(table, row) + " for " + span}` + (notes.length ? ` (${notes.join(", ")})` : "");
  }
}
