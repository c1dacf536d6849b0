// What lies along a clip's time: the filmstrip, which is the scrub bar, and the consistency strip.

// Makes `element` a slider over the frames of `player`: by pointer, arrow keys, Home, End, Page Up and Page Down.
function zs2FrameSlider(element, player, label) {
    const attributes = {role: 'slider', tabindex: 0, 'aria-label': zs2Words(label), 'aria-valuemin': 1};
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    const at = event => {
        const box = element.getBoundingClientRect();
        player.seek(Math.floor(zs2Clamp((event.clientX - box.left) / box.width, 0, 0.9999) * player.frames));
    };
    element.addEventListener('pointerdown', event => {
        if (event.button !== 0) return;
        element.setPointerCapture(event.pointerId);
        at(event);
    });
    element.addEventListener('pointermove', event => {
        if (element.hasPointerCapture(event.pointerId)) at(event);
    });
    element.addEventListener('keydown', event => {
        const far = Math.max(1, Math.round(player.frames / 10));
        const by = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -far, PageUp: far}[event.key];
        if (!by || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        event.stopPropagation();
        player.seek(player.frame + by);
    });
}

function zs2SetSlider(element, player, text) {
    element.setAttribute('aria-valuemax', player.frames);
    element.setAttribute('aria-valuenow', player.frame + 1);
    element.setAttribute('aria-valuetext', text);
}

class Zs2Filmstrip {
    constructor(player) {
        this.player = player;
        this.canvas = zs2Element('canvas', {'aria-hidden': 'true'});
        this.cursor = zs2Element('span', {class: 'zs2-cursor'});
        this.element = zs2Element('div', {class: 'zs2-filmstrip'}, this.canvas, this.cursor);
        zs2FrameSlider(this.element, player, 'Frame');
        this.picture = new Image();
        this.picture.addEventListener('load', () => this.draw());
        new ResizeObserver(() => this.draw()).observe(this.element);
    }

    show(filmstrip) {
        if (this.strip === filmstrip) return;
        this.strip = filmstrip;
        if (filmstrip) this.picture.src = filmstrip.image;
        else this.draw();
    }

    // As many pictures side by side as fit: of each the column that is nearest in time.
    draw() {
        const ratio = window.devicePixelRatio || 1;
        const width = Math.round(this.element.clientWidth * ratio);
        const height = Math.round(this.element.clientHeight * ratio);
        if (!width || !height) return;
        Object.assign(this.canvas, {width, height});
        const {strip, picture} = this;
        if (!strip || !picture.complete || !picture.naturalWidth) return;
        const fitting = Math.round(width / (height * strip.width / strip.height));
        const slots = zs2Clamp(fitting, 1, strip.frames.length);
        const context = this.canvas.getContext('2d');
        for (let slot = 0; slot < slots; slot++) {
            const frame = (slot + 0.5) / slots * this.player.frames - 0.5;
            const apart = strip.frames.map(shown => Math.abs(shown - frame));
            const left = apart.indexOf(Math.min(...apart)) * strip.width;
            const from = Math.round(slot * width / slots);
            const to = Math.round((slot + 1) * width / slots);
            const scale = Math.max((to - from) / strip.width, height / strip.height);
            const [w, h] = [(to - from) / scale, height / scale];
            const [x, y] = [left + (strip.width - w) / 2, (strip.height - h) / 2];
            context.drawImage(picture, x, y, w, h, from, 0, to - from, height);
        }
    }

    update() {
        const {frame, frames} = this.player;
        this.cursor.style.left = `${(frame + 0.5) / frames * 100}%`;
        zs2SetSlider(this.element, this.player, this.player.counter);
    }
}

// The change per frame as bars and the drift from frame 1 as a line; both mean absolute differences, of 255.
class Zs2Consistency {
    constructor(player) {
        this.player = player;
        this.chart = zs2Element('div', {class: 'zs2-chart'});
        zs2FrameSlider(this.chart, player, 'Consistency by frame');
        this.value = zs2Element('span', {class: 'zs2-value'});
        const key = (name, words) => zs2Element('span', {class: `zs2-key zs2-key-${name}`}, zs2Words(words));
        const legend = zs2Element(
            'div', {class: 'zs2-legend'},
            zs2Element('strong', {}, zs2Words('Consistency')),
            key('change', 'Change per frame'), key('drift', 'Drift from frame 1'), this.value,
        );
        this.element = zs2Element('div', {class: 'zs2-consistency', hidden: true}, legend, this.chart);
        this.element.title = zs2Words(
            'Mean difference of the pictures, of 255: of neighbours, and of each frame from the first. Click to jump.');
    }

    show(about) {
        if (this.about === about) return;
        this.about = about;
        this.element.hidden = !about?.drift || about.drift.length < 2;
        if (!this.element.hidden) this.chart.replaceChildren(this._drawn(about), this.cursor = this._cursor(about));
    }

    _cursor(about) {
        return zs2Element('span', {class: 'zs2-frame', style: `width: ${100 / about.drift.length}%`});
    }

    _drawn({change, drift}) {
        const most = Math.max(...change, ...drift, 1e-6);
        const height = value => (value / most * 92).toFixed(2);
        const bars = change.map((value, k) => `M${k + 1.15} 100v-${height(value)}h.7v${height(value)}z`).join('');
        const line = drift.map((value, k) => `${k ? 'L' : 'M'}${k + 0.5} ${(100 - height(value)).toFixed(2)}`).join('');
        const drawing = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
        const attributes = {viewBox: `0 0 ${drift.length} 100`, preserveAspectRatio: 'none', 'aria-hidden': 'true'};
        for (const [name, value] of Object.entries(attributes)) drawing.setAttribute(name, value);
        for (const [name, d] of [['zs2-bars', bars], ['zs2-line', line]]) {
            const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
            path.setAttribute('class', name);
            path.setAttribute('d', d);
            drawing.append(path);
        }
        return drawing;
    }

    update() {
        if (this.element.hidden) return;
        const {change, drift, every} = this.about; // of a long clip, of every n-th frame
        const frame = Math.min(Math.floor(this.player.frame / (every || 1)), drift.length - 1);
        this.cursor.style.left = `${frame / drift.length * 100}%`;
        const of = frame ? [change[frame - 1].toFixed(1), drift[frame].toFixed(1)] : ['0', '0'];
        this.value.textContent = zs2Words('change {0}, drift {1}', ...of);
        zs2SetSlider(this.chart, this.player, `${this.player.counter}: ${this.value.textContent}`);
    }
}
