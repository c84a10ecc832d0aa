import { Line } from "/line.js";
import { showTurn, showTree, showSignal, Wave } from "/show.js";

const $ = (id) => document.getElementById(id);
const token = decodeURIComponent(location.hash.slice(1));
const wave = new Wave($("wave"));
let call;

function status(text, state) {
  $("status").textContent = text;
  $("status").dataset.state = state;
}

// --- what was said ---------------------------------------------------------------------------

// One exchange: what the user said, and the reply. `turn` is known once the runtime has opened it.
let exchanges = [];

function newest(isNew) {
  let last = exchanges.at(-1);
  if (!last || isNew(last)) {
    const item = document.createElement("li");
    item.innerHTML = '<p class="user" hidden><b>you</b><span></span></p><p class="agent" hidden><b>agent</b><span></span></p>';
    $("said").append(item);
    const [user, agent] = item.querySelectorAll("p");
    last = { item, user, agent, segments: new Map(), reply: [] };
    exchanges.push(last);
    if (exchanges.length > 100) exchanges.shift().item.remove();
  }
  return last;
}

function write(line, text, partial) {
  line.hidden = false;
  line.lastChild.textContent = text;
  line.lastChild.className = partial ? "partial" : "";
  $("said").scrollTop = $("said").scrollHeight;
}

function note(text) {
  const item = document.createElement("li");
  item.className = "note";
  item.textContent = text;
  $("said").append(item);
}

function heardText({ speaker, text, segment, final }) {
  if (speaker === "user") {
    const exchange = newest((it) => it.turn && !it.segments.has(segment));
    exchange.segments.set(segment, text);
    write(exchange.user, [...exchange.segments.values()].join(" "), !final);
  } else {
    const exchange = newest(() => false);
    exchange.reply.push(text);
    write(exchange.agent, exchange.reply.join(" "), false);
  }
}

function signal({ signal: name, turn, reason, at_ms }) {
  showSignal($("signals"), { name, turn, reason, at_ms });
  if (name === "turn_open") {
    const exchange = newest((it) => it.turn);
    exchange.turn = turn;
  }
}

function turnOver(turn) {
  const exchange = exchanges.find((it) => it.turn === turn.turn);
  if (exchange) {
    if (turn.user_text) write(exchange.user, turn.user_text, false);
    const cut = turn.agent_text.startsWith(turn.heard_text)
      ? turn.agent_text.slice(turn.heard_text.length)
      : "";
    if (turn.agent_text) {
      write(exchange.agent, turn.heard_text, false);
      if (cut.trim()) {
        const struck = document.createElement("s");
        struck.textContent = cut;
        struck.title = "not heard";
        exchange.agent.lastChild.append(struck);
      }
    } else if (turn.reason) {
      write(exchange.agent, `(${turn.reason})`, true);
    }
  }
  $("no-turns").hidden = true;
  showTurn($("turns"), turn, call?.began.get(number(turn.turn)));
}

const number = (turn) => Number(turn.replace(/\D/g, ""));

// --- the call --------------------------------------------------------------------------------

async function begin() {
  status("asking for the microphone", "off");
  const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  let context = new AudioContext({ latencyHint: "interactive" });
  if (context.sampleRate > 48000 || context.sampleRate < 8000) {
    await context.close();
    context = new AudioContext({ latencyHint: "interactive", sampleRate: 48000 });
  }
  await context.audioWorklet.addModule("/sound.js");
  await context.resume();
  const microphone = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  const loudspeaker = new AudioWorkletNode(context, "loudspeaker", { numberOfInputs: 0, outputChannelCount: [1] });
  context.createMediaStreamSource(stream).connect(microphone);
  loudspeaker.connect(context.destination);
  const line = new Line({ rate: context.sampleRate, token });
  call = { stream, context, line, loudspeaker, muted: false, began: new Map(), firstAudio: new Map() };
  const mine = call;

  microphone.port.onmessage = ({ data }) => {
    wave.hear(data);
    const isOpen = $("ptt").checked ? mine.holding : !mine.muted;
    if (isOpen) line.speak(data);
  };
  loudspeaker.port.onmessage = ({ data }) => played(mine, data);

  const on = (type, act) => line.addEventListener(type, ({ detail }) => act(detail));
  on("ready", ({ returns }) => {
    status(returns ? "back again" : "listening", "on");
    live(true);
  });
  on("lost", () => status("connection lost, trying again", "lost"));
  on("forgotten", () => {
    note("The conversation was given up meanwhile; a new one begins.");
    exchanges = [];
  });
  on("audio", ({ turn, pcm }) => {
    if (!mine.firstAudio.has(turn)) mine.firstAudio.set(turn, performance.now());
    loudspeaker.port.postMessage({ turn, pcm }, [pcm]);
  });
  on("audio_end", ({ turn }) => loudspeaker.port.postMessage({ end: turn }));
  on("clear", ({ turn }) => loudspeaker.port.postMessage({ clear: turn }));
  on("text", heardText);
  on("signal", signal);
  on("turn", turnOver);
  on("voice", ({ available }) => note(available ? "The agent has its voice back." : "The agent has lost its voice, and goes on in text."));
  on("draining", () => note("The server is about to stop."));
  on("error", ({ message, fatal }) => {
    note(message);
    if (fatal && !line.ready) end(message);
  });
  on("end", ({ reason }) => end(reason));
  on("over", ({ reason }) => end(reason));
}

// What the loudspeaker tells: receipts for the runtime, and what the page shows.
function played(call, { turn, ms, began, ended, cleared, cut }) {
  call.line.say({ type: "played", turn, ms });
  if (began) {
    const waited = performance.now() - (call.firstAudio.get(turn) ?? performance.now());
    call.began.set(turn, waited);
    status("agent speaks", "speaking");
    wave.speaks = true;
  }
  if (ended || cleared) {
    status("listening", "on");
    wave.speaks = false;
  }
  document.body.dataset.played = JSON.stringify({ turn, ms, ended: !!ended, cleared: !!cleared, cut: !!cut });
}

function end(reason) {
  if (!call) return;
  const { stream, context, line } = call;
  call = undefined;
  line.hangUp();
  for (const track of stream.getTracks()) track.stop();
  context.close();
  exchanges = [];
  live(false);
  status(reason ? `call over: ${reason}` : "call over", "off");
}

function live(is) {
  $("call").textContent = is ? "Hang up" : "Talk";
  $("call").toggleAttribute("data-on", is);
  for (const id of ["mute", "stop", "words"]) $(id).disabled = !is;
  $("type").querySelector("button").disabled = !is;
  if (!is) mute(false);
}

function mute(is) {
  if (call) call.muted = is;
  $("mute").setAttribute("aria-pressed", is);
  $("mute").textContent = is ? "Muted" : "Mute";
}

function hold(is) {
  if (!call || !$("ptt").checked || call.holding === is) return;
  call.holding = is;
  $("hold").setAttribute("aria-pressed", is);
  if (!is) call.line.say({ type: "end_of_utterance" });
}

// --- buttons and keys ------------------------------------------------------------------------

$("call").onclick = () => {
  if (call) return end("");
  $("call").disabled = true;
  begin()
    .catch((error) => status(`no call: ${error.message}`, "error"))
    .finally(() => ($("call").disabled = false));
};
$("mute").onclick = () => mute(!call.muted);
$("stop").onclick = () => call?.line.say({ type: "cancel" });
$("type").onsubmit = (event) => {
  event.preventDefault();
  const text = $("words").value.trim();
  if (!text || !call) return;
  // The key keeps a word that is said again after a lost connection from counting twice.
  if (call.line.say({ type: "text", text, key: crypto.randomUUID() })) $("words").value = "";
};
$("ptt").onchange = () => ($("hold").hidden = !$("ptt").checked);
$("hold").onpointerdown = () => hold(true);
for (const over of ["pointerup", "pointercancel", "pointerleave"]) $("hold").addEventListener(over, () => hold(false));
const isTyping = ({ target }) => target.matches("input:not([type=checkbox])");
addEventListener("keydown", (event) => {
  if (isTyping(event)) return;
  if (event.key === "Escape") $("stop").click();
  if (event.key === "m" && call) mute(!call.muted);
  if (event.key === " " && $("ptt").checked && call) {
    event.preventDefault();
    hold(true);
  }
});
addEventListener("keyup", (event) => event.key === " " && hold(false));
addEventListener("blur", () => hold(false));
addEventListener("pagehide", () => end(""));

// --- what runs -------------------------------------------------------------------------------

async function look() {
  if (!document.hidden) {
    try {
      const query = token ? `?token=${encodeURIComponent(token)}` : "";
      const answer = await fetch(`/v1/observe${query}`);
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      showTree($("tree"), $("load"), await answer.json());
    } catch {
      $("load").textContent = "the runtime does not answer";
    }
  }
  setTimeout(look, 1000);
}
look();
