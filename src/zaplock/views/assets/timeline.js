// The timeline: a lane per thread on a canvas, bars for holds and waits, arrows from victim to culprit.
"use strict";

const LANE = 20, AXIS = 26, NEAREST_NS = 20, FAINTEST = 0.3, PALE = 0.3, TALLEST = 6000, TALL = 420, LEAST_LANES = 4;
const UNASKED = 0.12, LEAST = 1e-6;
let LABEL = 230;
const FONT = "12px system-ui, sans-serif";
const STYLES = ["shared", "downgraded", "exclusive", "wait"];

class Timeline {
  constructor(canvas, recording, chosen) {
    Object.assign(this, { canvas, recording, chosen, top: 0, selected: null, match: null });
    this.paint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.paint(); this.later(); });
    // As tall as its lanes; of many threads it shows some, of many runs all: there the page scrolls.
    const most = recording.whole ? TALLEST : TALL;
    canvas.style.height = `${Math.min(most, AXIS + Math.max(recording.lanes.length, LEAST_LANES) * LANE + 4)}px`;
    this.all = Math.max(recording.duration, 1);
    this.view = { start: 0, span: this.all };
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }

  paint() {
    const style = getComputedStyle(document.documentElement);
    const names = [...STYLES, "gap", "ink", "dim", "line", "paper", "raised", "stripe"];
    this.colours = Object.fromEntries(names.map(name => [name, style.getPropertyValue("--" + name).trim()]));
  }

  resize() {
    const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    this.width = box.width; this.height = box.height;
    LABEL = box.width < 700 || this.recording.whole ? 110 : 230;
    this.canvas.width = box.width * ratio; this.canvas.height = box.height * ratio;
    this.pen = this.canvas.getContext("2d");
    this.pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.draw();
  }

  x(time) { return LABEL + (time - this.view.start) / this.view.span * (this.width - LABEL); }
  time(x) { return this.view.start + (x - LABEL) / (this.width - LABEL) * this.view.span; }
  y(lane) { return AXIS + lane * LANE - this.top; }

  show(start, span) {
    span = Math.min(Math.max(span, NEAREST_NS), this.all);
    this.view = { start: Math.min(Math.max(start, 0), this.all - span), span };
    this.later();
  }

  zoom(factor, at = this.view.start + this.view.span / 2) {
    const span = Math.min(Math.max(this.view.span * factor, NEAREST_NS), this.all);
    this.show(at - (at - this.view.start) * span / this.view.span, span);
  }

  scroll(pixels) {
    const most = Math.max(0, AXIS + this.recording.lanes.length * LANE - this.height);
    this.top = Math.min(Math.max(this.top + pixels, 0), most);
    this.later();
  }

  // Many moves in one frame are one drawing.
  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  select(table, row, bring) {
    this.selected = { table, row };
    if (bring) {
      const span = Math.max(table.span[row] * 2.5, 200);
      this.show(table.start[row] + table.span[row] / 2 - span / 2, span);
      const y = this.y(table.lane[row]);
      if (y < AXIS || y > this.height - LANE) this.scroll(y - this.height / 2);
    }
    this.later();
  }

  draw() {
    const { pen, width, height } = this;
    pen.clearRect(0, 0, width, height);
    pen.font = FONT;
    pen.textBaseline = "middle";
    this.drawGaps();
    const first = Math.max(0, Math.floor(this.top / LANE)), last = Math.min(this.recording.lanes.length, first + Math.ceil(height / LANE) + 1);
    for (let lane = first; lane < last; lane++) this.drawLane(lane);
    this.drawLabels(first, last);
    this.drawAxis();
    this.drawArrows(first, last);
  }

  drawGaps() {
    this.pen.fillStyle = this.colours.gap;
    for (const [start, end] of this.recording.gaps) {
      const left = Math.max(this.x(start), LABEL), right = this.x(end);
      if (right >= LABEL && left <= this.width) this.pen.fillRect(left, AXIS, Math.max(right - left, 1), this.height);
    }
  }

  drawLane(lane) {
    const y = this.y(lane), { holds, waits } = this.recording;
    this.pen.fillStyle = lane % 2 ? this.colours.stripe : "transparent";
    this.pen.fillRect(LABEL, y, this.width - LABEL, LANE);
    for (const style of STYLES) {
      const thin = style === "wait";
      this.drawBars(this.recording.byLane[lane][style], thin ? waits : holds, this.colours[style], y + (thin ? 7 : 3), thin ? 6 : 14);
    }
  }

  // What is narrower than a pixel adds to the pixels that it covers, and each is as faint as what is covered
  // of it is little: a million bars cost no more than a screen, and a lock that is held for a thousandth of
  // the time doesn't look held.
  drawBars({ rows, start, span }, table, colour, y, height) {
    const { view } = this, from = view.start, end = view.start + view.span;
    const match = this.match && this.match[table.name], room = Math.max(1, Math.ceil(this.width - LABEL));
    const scale = (this.width - LABEL) / view.span, { told, others } = this.emptied(room);
    let narrow = 0;
    this.pen.fillStyle = colour;
    for (let place = this.firstVisible(start); place < start.length && start[place] <= end; place++) {
      const left = (start[place] - from) * scale, wide = span[place] * scale, right = left + wide;
      if (right < 0) continue;
      const matches = !match || match[rows[place]];
      if (wide >= 1) this.drawBar(table, rows[place], Math.max(left, 0) + LABEL, right + LABEL, y, height, matches);
      else {
        const into = matches ? told : others, pixel = left > 0 ? left | 0 : 0, inside = left > 0 ? left : 0;
        narrow++;
        if (right > pixel + 1) {
          into[pixel] += pixel + 1 - inside + LEAST;
          into[pixel + 1] += right - pixel - 1;
        } else into[pixel] += right - inside + LEAST;
      }
    }
    if (narrow) this.drawPixels(told, others, colour, y, height, room);
  }

  // How much of each pixel is covered, by what is asked for and by the rest.
  emptied(room) {
    if (!this.covered || this.covered.told.length !== room + 2)
      this.covered = { told: new Float32Array(room + 2), others: new Float32Array(room + 2) };
    this.covered.told.fill(0);
    this.covered.others.fill(0);
    return this.covered;
  }

  drawBar(table, row, left, right, y, height, matches) {
    const { pen } = this;
    pen.globalAlpha = matches ? 1 : UNASKED;
    if (right - left > 2 && this.recording.isInPart(table, row)) this.drawPart(left, y, right - left, height);
    else pen.fillRect(left, y, right - left, height);
    pen.globalAlpha = 1;
  }

  // One line of pixels, drawn as high as the bars are.
  drawPixels(told, others, colour, y, height, room) {
    const strip = this.strip ||= document.createElement("canvas");
    if (strip.width !== room || !this.line) {
      strip.width = room;
      strip.height = 1;
      this.ink = strip.getContext("2d");
      this.line = this.ink.createImageData(room, 1);
      this.cells = new Uint32Array(this.line.data.buffer);
    }
    const { cells } = this, rgb = parseInt(colour.slice(1), 16), ink = (rgb & 255) << 16 | rgb & 0xff00 | rgb >> 16; // little-endian: ABGR
    const dense = part => 255 * (FAINTEST + (1 - FAINTEST) * Math.min(1, part));
    for (let x = 0; x < room; x++) {
      let alpha = told[x] ? dense(told[x]) : 0;
      if (others[x]) alpha = Math.max(alpha, UNASKED * dense(others[x]));
      cells[x] = alpha ? Math.round(alpha) << 24 | ink : 0;
    }
    this.ink.putImageData(this.line, 0, 0);
    this.pen.imageSmoothingEnabled = false;
    this.pen.drawImage(strip, 0, 0, room, 1, LABEL, y, room, height);
  }

  // Seen in part: pale, with an outline.
  drawPart(left, y, wide, height) {
    const { pen } = this, alpha = pen.globalAlpha;
    pen.globalAlpha = alpha * PALE;
    pen.fillRect(left, y, wide, height);
    pen.globalAlpha = alpha;
    pen.strokeStyle = pen.fillStyle;
    pen.lineWidth = 1.5;
    pen.strokeRect(left + 0.75, y + 0.75, wide - 1.5, height - 1.5);
  }

  firstVisible(start) {
    let low = 0, high = start.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (start[middle] < this.view.start) low = middle + 1; else high = middle;
    }
    return Math.max(0, low - 2);
  }

  drawLabels(first, last) {
    const { pen, recording } = this;
    pen.fillStyle = this.colours.paper;
    pen.fillRect(0, 0, LABEL, this.height);
    for (let lane = first; lane < last; lane++) {
      const { comm, tid, pid, process, title } = recording.lanes[lane], fresh = lane === first || recording.lanes[lane - 1].pid !== pid;
      const y = this.y(lane);
      if (title) {
        pen.fillStyle = this.colours.raised;
        pen.fillRect(0, y, this.width, LANE);
        pen.fillStyle = this.colours.ink;
        pen.font = "600 12px system-ui, sans-serif";
        pen.fillText(title, 4, y + LANE / 2, this.width - 8);
        pen.font = FONT;
        continue;
      }
      if (fresh && !recording.whole) {
        pen.fillStyle = this.colours.line;
        pen.fillRect(0, y, this.width, 1);
        pen.fillStyle = this.colours.dim;
        if (LABEL > 200) pen.fillText(`${process || "?"} ${pid}`, 4, y + LANE / 2, 96);
      }
      pen.fillStyle = this.colours.ink;
      const at = LABEL > 200 && !recording.whole ? 104 : 4;
      pen.fillText(`${comm || "?"} ${tid}`, at, y + LANE / 2, LABEL - at - 4);
    }
  }

  drawAxis() {
    const { pen } = this;
    pen.fillStyle = this.colours.raised;
    pen.fillRect(0, 0, this.width, AXIS);
    pen.fillStyle = this.colours.ink;
    const rough = this.view.span / Math.max((this.width - LABEL) / 110, 1), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= rough);
    for (let time = Math.ceil(this.view.start / step) * step; time <= this.view.start + this.view.span; time += step) {
      const x = this.x(time);
      pen.fillRect(x, AXIS - 5, 1, 5);
      pen.fillText(this.stamp(time, step), x + 4, AXIS / 2);
    }
    const span = document.getElementById("span");
    span.textContent = `${duration(this.view.span)} from ${(this.view.start / 1e9).toFixed(6)} s`;
  }

  // Enough digits that two neighbouring ticks differ.
  stamp(time, step) {
    const [unit, size] = step >= 1e8 ? ["s", 1e9] : step >= 1e5 ? ["ms", 1e6] : ["us", 1e3];
    return (time / size).toFixed(Math.max(0, Math.ceil(Math.log10(size / step)))) + " " + unit;
  }

  drawArrows(first, last) {
    const { waits } = this.recording, end = this.view.start + this.view.span, seen = [];
    for (let lane = first; lane < last && seen.length <= 60; lane++) {
      const { rows, start } = this.recording.byLane[lane].wait;
      for (let place = this.firstVisible(start); place < rows.length && seen.length <= 60; place++) {
        const row = rows[place];
        if (waits.start[row] > end) break;
        if (waits.culprit[row] !== NOBODY && waits.span[row] > this.view.span / 50) seen.push(row);
      }
    }
    if (seen.length <= 60) for (const row of seen) this.drawArrow(row, this.colours.dim, 1);
    if (!this.selected) return;
    this.outline(this.selected.table, this.selected.row);
    if (this.selected.table === waits && waits.culprit[this.selected.row] !== NOBODY) {
      this.outline(this.recording.holds, waits.culprit[this.selected.row]);
      this.drawArrow(this.selected.row, this.colours.ink, 2);
    }
  }

  // From the victim's wait to the hold that it waited for, where the two stand above each other.
  drawArrow(row, colour, width) {
    const { pen } = this, { waits, holds } = this.recording, hold = waits.culprit[row];
    const common = Math.min(waits.start[row] + waits.span[row], holds.start[hold] + holds.span[hold]);
    const x = Math.min(Math.max(this.x(common), LABEL + 6), this.width - 6), down = holds.lane[hold] > waits.lane[row] ? 1 : -1;
    const from = this.y(waits.lane[row]) + 10, to = this.y(holds.lane[hold]) + 10 - down * 7;
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(x, from);
    pen.lineTo(x, to - down * 5);
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x, to);
    pen.lineTo(x - 4, to - down * 7);
    pen.lineTo(x + 4, to - down * 7);
    pen.fill();
  }

  outline(table, row) {
    const left = Math.max(this.x(table.start[row]), LABEL), right = Math.min(this.x(table.start[row] + table.span[row]), this.width);
    if (right < LABEL || left > this.width) return;
    this.pen.strokeStyle = this.colours.ink;
    this.pen.lineWidth = 1.5;
    this.pen.strokeRect(left - 1, this.y(table.lane[row]) + 1.5, Math.max(right - left, 1) + 2, LANE - 3);
  }

  // The wait or hold under the pointer; of several within two pixels the longest.
  at(x, y) {
    const lane = Math.floor((y - AXIS + this.top) / LANE), slack = this.view.span / (this.width - LABEL) * 2;
    if (x < LABEL || y < AXIS || lane < 0 || lane >= this.recording.lanes.length) return null;
    const now = this.time(x);
    let best = null;
    for (const style of STYLES) {
      const table = style === "wait" ? this.recording.waits : this.recording.holds, { rows, start } = this.recording.byLane[lane][style];
      for (let place = this.firstVisible(start); place < rows.length; place++) {
        const row = rows[place];
        if (table.start[row] > now + slack) break;
        if (table.start[row] + table.span[row] < now - slack) continue;
        if (!best || table.span[row] > best.table.span[best.row]) best = { table, row };
      }
    }
    return best;
  }

  // Go through the waits from the longest on (step 1), or back.
  longest(step) {
    const { waits } = this.recording;
    this.order ||= [...waits.span.keys()].sort((a, b) => waits.span[b] - waits.span[a] || a - b);
    const chosen = this.selected && this.selected.table === waits ? this.order.indexOf(this.selected.row) : -1;
    const next = Math.min(Math.max(chosen + step, 0), this.order.length - 1);
    if (this.order.length) this.chosen(waits, this.order[next], true);
  }

  listen() {
    const { canvas } = this;
    let drag = null;
    canvas.addEventListener("wheel", event => {
      if (this.recording.whole && !event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      if (event.shiftKey || event.offsetX < LABEL) this.scroll(event.deltaY || event.deltaX);
      else this.zoom(Math.exp(event.deltaY / 300), this.time(event.offsetX));
    }, { passive: false });
    const fingers = new Map();
    const apart = () => { const [a, b] = [...fingers.values()]; return Math.max(20, Math.abs(a - b)); };
    const lift = event => fingers.delete(event.pointerId);
    canvas.addEventListener("pointercancel", event => { lift(event); drag = null; });
    canvas.addEventListener("pointerdown", event => {
      fingers.set(event.pointerId, event.offsetX);
      drag = { x: event.offsetX, y: event.offsetY, start: this.view.start, top: this.top, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", event => {
      if (fingers.size === 2 && fingers.has(event.pointerId)) {
        const before = apart();
        fingers.set(event.pointerId, event.offsetX);
        const [a, b] = [...fingers.values()];
        this.zoom(before / apart(), this.time((a + b) / 2));
        if (drag) drag.moved = true;
        return;
      }
      if (!drag) return;
      drag.moved ||= Math.hypot(event.offsetX - drag.x, event.offsetY - drag.y) > 4;
      if (!drag.moved) return;
      this.show(drag.start - (event.offsetX - drag.x) / (this.width - LABEL) * this.view.span, this.view.span);
      this.scroll(drag.top - (event.offsetY - drag.y) - this.top);
    });
    canvas.addEventListener("pointerup", event => {
      lift(event);
      const hit = drag && !drag.moved && this.at(event.offsetX, event.offsetY);
      drag = null;
      if (hit) this.chosen(hit.table, hit.row, false);
    });
    canvas.addEventListener("keydown", event => {
      const { start, span } = this.view;
      const moves = {
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), "0": () => this.show(0, this.all),
        ArrowLeft: () => this.show(start - span / 5, span), ArrowRight: () => this.show(start + span / 5, span),
        n: () => this.longest(1), p: () => this.longest(-1),
        ArrowUp: () => this.scroll(-LANE), ArrowDown: () => this.scroll(LANE),
      };
      if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
    });
  }
}
