// Headless Chromium plays files of a cluster: node browser.mjs BASE SCREENSHOTS
// The page comes from another origin than the media, so every player's request is a cross-origin one.
import { createServer } from "node:http";
import { readFile, mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { join, normalize } from "node:path";
import puppeteer from "puppeteer-core";

const [base, shots] = process.argv.slice(2);
const here = fileURLToPath(new URL(".", import.meta.url));
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css" };
const server = createServer(async (request, response) => {
  const path = normalize(new URL(request.url, "http://x").pathname);
  const file = path.startsWith("/modules/") ? join(process.env.NODE_MODULES, path.slice(9)) : join(here, path);
  try {
    const body = await readFile(file);
    response.writeHead(200, { "Content-Type": types[file.slice(file.lastIndexOf("."))] ?? "application/octet-stream" });
    response.end(body);
  } catch { response.writeHead(404); response.end(); }
});
await new Promise(done => server.listen(0, "127.0.0.1", done));
const page_at = `http://127.0.0.1:${server.address().port}/page.html`;
await mkdir(shots, { recursive: true });

const cases = [
  ["plain", "film.mp4"], ["plain", "film.webm"], ["hls", "hls/master.m3u8"], ["hls", "hls-fmp4/master.m3u8"], ["dash", "dash/film.mpd"],
  ["videojs", "film.mp4"], ["videojs", "hls/master.m3u8"], ["videojs", "dash/film.mpd"],
];
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required", "--mute-audio"],
});
let failed = 0;
try {
  for (const [player, name] of cases) {
    const page = await browser.newPage();
    const console_lines = [];
    page.on("console", line => line.type() === "error" && console_lines.push(line.text()));
    await page.goto(`${page_at}?player=${player}&url=${encodeURIComponent(`${base}/ann/show/${name}`)}`);
    let outcome;
    try {
      await page.waitForFunction(() => window.outcome, { timeout: 120000 });
      outcome = await page.evaluate(() => window.outcome);
    } catch (error) { outcome = { ok: false, error: String(error) }; }
    await page.screenshot({ path: join(shots, `${player}-${name.replaceAll("/", "-")}.png`) });
    console.log(`players: chromium, ${player}, ${name}: ${JSON.stringify(outcome)}`);
    if (!outcome.ok) { failed++; console_lines.forEach(line => console.log(`  ${line}`)); }
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
}
process.exit(failed ? 1 : 0);
