// Types a question to the agent and counts the sound of its reply. Runs in any browser; in Node from 22
// on, or with the `ws` package.
const Socket = globalThis.WebSocket ?? (await import("ws")).default;
const [url, question] = process.argv.slice(2);
const socket = new Socket(url, ["rspp.v1.json"]);
socket.binaryType = "arraybuffer";
const say = (message) => socket.send(JSON.stringify(message));
let samples = 0;
socket.onopen = () => say({ type: "hello" });
socket.onmessage = ({ data }) => {
  if (typeof data !== "string") return (samples += data.byteLength / 2);
  const event = JSON.parse(data);
  if (event.type === "ready") say({ type: "text", text: question });
  if (event.type === "text" && event.final) console.log(`${event.speaker}: ${event.text}`);
  if (event.type === "error") console.error(event.message);
  if (event.type === "audio_end") say({ type: "bye" });
};
socket.onclose = () => console.log(`${(samples / 16000).toFixed(1)} s of speech`);
