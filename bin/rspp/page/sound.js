// What runs on the audio thread: the microphone in frames of 20 ms, and a loudspeaker that knows what it
// has played.

const pcm16 = (samples) => Int16Array.from(samples, (x) => Math.max(-1, Math.min(1, x)) * 32767);

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frame = new Float32Array(Math.round(sampleRate / 50));
    this.filled = 0;
  }

  process([input]) {
    for (const sample of input[0] ?? []) {
      this.frame[this.filled++] = sample;
      if (this.filled === this.frame.length) {
        const pcm = pcm16(this.frame).buffer;
        this.port.postMessage(pcm, [pcm]);
        this.filled = 0;
      }
    }
    return true;
  }
}

// A reply begins once this much of it is there, so that a late frame is no gap.
const AHEAD = Math.round(sampleRate * 0.06);

class Loudspeaker extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = [];
    this.waiting = 0;
    this.running = false;
    this.played = new Map();
    this.told = 0;
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take({ turn, pcm, end, clear }) {
    if (pcm) {
      const samples = new Int16Array(pcm);
      this.queue.push({ turn, samples, at: 0 });
      this.waiting += samples.length;
      this.running ||= this.waiting >= AHEAD;
    } else if (end) {
      this.queue.push({ turn: end, end: true });
      this.running = true;
    } else if (clear) {
      const cut = this.queue.some((piece) => piece.turn <= clear && piece.samples);
      this.queue = this.queue.filter((piece) => piece.turn > clear);
      this.waiting = this.queue.reduce((sum, piece) => sum + (piece.samples?.length ?? 0), 0);
      this.tell({ turn: clear, cleared: true, cut });
    }
  }

  tell(more) {
    const ms = Math.round(((this.played.get(more.turn) ?? 0) / sampleRate) * 1000);
    this.port.postMessage({ ms, ...more });
    this.told = currentTime;
  }

  process(_, [output]) {
    const out = output[0];
    let at = 0;
    while (this.running && this.queue.length && at < out.length) {
      const piece = this.queue[0];
      if (piece.end) {
        this.queue.shift();
        this.tell({ turn: piece.turn, ended: true });
        continue;
      }
      const had = this.played.get(piece.turn) ?? 0;
      const count = Math.min(out.length - at, piece.samples.length - piece.at);
      for (let n = 0; n < count; n++) out[at++] = piece.samples[piece.at++] / 32768;
      this.waiting -= count;
      this.played.set(piece.turn, had + count);
      if (had === 0) {
        for (const turn of this.played.keys()) if (turn < piece.turn - 1) this.played.delete(turn);
        this.tell({ turn: piece.turn, began: true });
      } else if (currentTime - this.told >= 0.1) {
        this.tell({ turn: piece.turn });
      }
      if (piece.at === piece.samples.length) this.queue.shift();
    }
    if (!this.queue.length) this.running = false;
    return true;
  }
}

registerProcessor("microphone", Microphone);
registerProcessor("loudspeaker", Loudspeaker);
