// One clip in a <video>: its frames by number, exact seeking, and what is wrong with it in words.

const zs2Abouts = new Map();

// What the server tells of a clip; the last ones are kept.
async function zs2About({name, made = ''}) {
    const key = `${made} ${name}`;
    if (!zs2Abouts.has(key)) {
        const about = await (await zs2Ask(zs2ClipAddress(name, 'about'))).json();
        zs2Abouts.set(key, about);
        if (zs2Abouts.size > 30) zs2Abouts.delete(zs2Abouts.keys().next().value);
    }
    return zs2Abouts.get(key);
}

function zs2IsSameClip(one, other) {
    return one?.name === other?.name && one?.made === other?.made;
}

class Zs2Track {
    // `mark` is "A" or "B"; `changed()` is called when what it shows or tells of itself is another.
    constructor(mark, changed) {
        this.changed = changed;
        this.clip = this.about = this.wanted = null;
        this.video = zs2Element('video', {playsinline: true, loop: true, preload: 'auto'});
        this.video.muted = true;
        this.message = zs2Element('p', {class: 'zs2-message', role: 'alert', hidden: true});
        this.mark = zs2Element('span', {class: 'zs2-mark', 'aria-hidden': 'true'}, mark);
        this.element = zs2Element('div', {class: 'zs2-track'}, this.video, this.mark, this.message);
        for (const event of ['play', 'pause', 'loadeddata', 'emptied']) this.video.addEventListener(event, changed);
        this.video.addEventListener('seeked', () => this._seeked());
        this.video.addEventListener('error', () => this._failed());
    }

    get frames() {
        return this.about?.frames || this.clip?.frames || 1;
    }

    get fps() {
        return this.about?.fps || this.clip?.fps || 8;
    }

    get seconds() {
        return this.frames / this.fps;
    }

    get playing() {
        return !this.video.paused;
    }

    // The frame that is shown, from 0.
    get frame() {
        const time = this.wanted ?? this.video.currentTime;
        return zs2Clamp(Math.floor(time * this.fps + 1e-3), 0, this.frames - 1);
    }

    // How far it is, 0 to 1.
    get part() {
        return zs2Clamp(this.video.currentTime / this.seconds, 0, 1);
    }

    // Shows a clip {name, frames?, fps?, made?}; what the server knows of it comes later. `made`, when the page was told
    // of it, tells it from another one that had its name before.
    async show(clip) {
        if (zs2IsSameClip(this.clip, clip) && !this.video.error) return;
        this.clip = clip;
        this.about = this.wanted = null;
        this.message.hidden = true;
        this.video.src = zs2ClipAddress(clip.name, 'video') + (clip.made ? `?made=${clip.made}` : '');
        this.video.setAttribute('aria-label', clip.name);
        this.changed();
        try {
            const about = await zs2About(clip);
            if (this.clip !== clip) return;
            this.about = about;
        } catch (error) {
            if (this.clip === clip) this.tell(error.message);
        }
        this.changed();
    }

    clear() {
        this.clip = this.about = this.wanted = null;
        this.message.hidden = true;
        this.video.removeAttribute('src');
        this.video.load();
    }

    tell(text) {
        this.message.textContent = text;
        this.message.hidden = false;
    }

    // Shows frame `frame`: the middle of its time, so that no rounding shows another. One seek at a time.
    seek(frame) {
        this.wanted = (zs2Clamp(frame, 0, this.frames - 1) + 0.5) / this.fps;
        if (!this.video.seeking) this.video.currentTime = this.wanted;
        this.changed();
    }

    _seeked() {
        if (this.wanted !== null && Math.abs(this.video.currentTime - this.wanted) > 1e-3) {
            this.video.currentTime = this.wanted;
            return;
        }
        this.changed();
    }

    async play() {
        this.wanted = null;
        try {
            await this.video.play();
        } catch (error) {
            if (error.name !== 'AbortError') this.changed(); // the browser waits for a click, or it cannot be played
        }
    }

    pause() {
        this.video.pause();
    }

    async _failed() {
        const clip = this.clip;
        if (!clip || !this.video.getAttribute('src')) return;
        let words = zs2Words('This browser cannot decode the clip. Download it, or make it as WebM.');
        try {
            await zs2Ask(zs2ClipAddress(clip.name, 'video'), {headers: {Range: 'bytes=0-0'}});
        } catch (error) {
            words = error.message;
        }
        if (this.clip === clip) this.tell(words);
        this.changed();
    }
}
