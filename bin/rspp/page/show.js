// How things look: the waves, a turn's stages, the tree, signals.

const STAGES = [
  ["speech_end_ts", "speech end"],
  ["end_of_turn_ts", "end of turn"],
  ["transcript_final_ts", "transcript"],
  ["turn_open_emitted_ts", "turn opened"],
  ["llm_first_token_ts", "first token"],
  ["first_clause_ts", "first clause"],
  ["tts_first_audio_ts", "first audio"],
  ["assistant_audio_playback_started_ts", "sent"],
];

const element = (name, text, attributes = {}) => {
  const made = Object.assign(document.createElement(name), { textContent: text ?? "" });
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

// The stages of a turn, from the user's last sound to the first that is heard here.
export function showTurn(into, turn, heardAfter) {
  const at = turn.anchors_ms;
  const origin = at.audio_input_ingress_ts ?? at.turn_open_proposed_ingress_accepted_ts;
  const stages = [];
  let before = origin;
  const known = STAGES.filter(([name]) => at[name] >= origin).map(([name, label]) => [at[name], label]);
  for (const [ms, label] of known.sort(([a], [b]) => a - b)) {
    stages.push({ label, from: before - origin, ms: ms - before });
    before = ms;
  }
  if (heardAfter !== undefined) stages.push({ label: "heard here", from: before - origin, ms: heardAfter });
  const total = stages.length ? stages.at(-1).from + stages.at(-1).ms : 0;
  const card = element("div", "", { class: "turn" });
  const head = element("header");
  head.append(element("b", turn.turn), element("span", `${turn.reason ?? turn.outcome} · ${Math.round(total)} ms`));
  card.append(head);
  for (const { label, from, ms } of stages) {
    const bar = element("div", "", { class: "bar" });
    const track = element("span");
    const fill = element("i");
    fill.style.marginLeft = `${(100 * from) / (total || 1)}%`;
    fill.style.width = `${(100 * ms) / (total || 1)}%`;
    track.append(fill);
    bar.append(element("span", label), track, element("span", `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`));
    card.append(bar);
  }
  into.prepend(card);
  while (into.children.length > 5) into.lastChild.remove();
}

export function showTree(table, load, { actors, server, sessions }) {
  const count = (n, one, many) => `${n} ${n === 1 ? one : many}`;
  load.textContent = [
    count(sessions, "session", "sessions"),
    count(server.sockets, "socket", "sockets"),
    count(server.resumed, "return", "returns"),
    count(server.errors, "wrong message", "wrong messages"),
  ].join(" · ");
  const rows = actors.map((actor) => {
    const parts = actor.path.split("/");
    const row = element("tr");
    const name = element("td", parts.at(-1), { title: actor.path });
    name.style.paddingLeft = `${0.4 + 0.8 * (parts.length - 1)}rem`;
    const { control, data, telemetry } = actor.depths;
    const lanes = element("td", `${control} · ${data} · ${telemetry}`);
    if (control + data > 20) lanes.dataset.hot = "";
    const restarts = element("td", actor.restarts);
    if (actor.restarts) restarts.dataset.hot = "";
    row.append(name, element("td", actor.state), lanes, restarts, element("td", actor.handled));
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
}

export function showSignal(list, { name, turn, reason, at_ms }) {
  const item = element("li");
  item.append(element("time", `${(at_ms / 1000).toFixed(2)} s`));
  item.append([name, turn, reason].filter(Boolean).join(" · "));
  list.prepend(item);
  while (list.children.length > 40) list.lastChild.remove();
}

// The user's microphone as a moving line; its colour tells who speaks.
export class Wave {
  constructor(canvas) {
    this.canvas = canvas;
    this.levels = new Float32Array(200);
    this.colours = new Array(200).fill("--user");
    this.speaks = false;
    const draw = () => {
      this.draw();
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  }

  hear(pcm) {
    let peak = 0;
    for (const sample of new Int16Array(pcm)) peak = Math.max(peak, Math.abs(sample));
    this.levels.copyWithin(0, 1);
    this.levels[this.levels.length - 1] = peak / 32768;
    this.colours.shift();
    this.colours.push(this.speaks ? "--agent" : "--user");
  }

  draw() {
    const { canvas, levels, colours } = this;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    if (canvas.width !== width) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    context.clearRect(0, 0, width, height);
    const step = width / levels.length;
    levels.forEach((level, n) => {
      const tall = Math.max(2 * scale, Math.sqrt(level) * height * 0.95);
      context.fillStyle = style.getPropertyValue(colours[n]);
      context.fillRect(n * step, (height - tall) / 2, Math.max(1, step - scale), tall);
    });
  }
}
