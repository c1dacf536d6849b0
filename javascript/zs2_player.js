// The player of clips. It needs no WebUI: routes under zs2/v1/ beside the page, and an element to be put into.

const zs2Speeds = [0.25, 0.5, 1, 1.5, 2];

class Zs2Player {
    // `sections` are functions of the player that give elements to put under its controls.
    constructor(sections = []) {
        this.groups = [];
        this.listeners = {};
        this._build(sections);
        this._shown = -1;
        this.element.addEventListener('keydown', event => this._key(event));
    }

    // --- what others read and do -----------------------------------------------------------------------------------

    get clip() {
        return this.track.clip;
    }

    get about() {
        return this.track.about;
    }

    get frames() {
        return this.track.frames;
    }

    get frame() {
        return this.track.frame;
    }

    get counter() {
        return zs2Words('frame {0} of {1}', this.frame + 1, this.frames);
    }

    // `listener(value)` is called at an event: "clip" (another one is shown), "act" (the user moves in it).
    on(event, listener) {
        (this.listeners[event] ||= []).push(listener);
    }

    tell(event, value) {
        for (const listener of this.listeners[event] || []) listener(value);
    }

    // Shows a clip {name, label?, frames?, fps?, saved?}, and plays it unless the user's system asks for less motion.
    show(clip, plays = !matchMedia('(prefers-reduced-motion: reduce)').matches) {
        this.say('');
        if (this.clip && this.clip.name !== clip.name) this.before = this.clip;
        this.track.show(clip);
        this._speed();
        if (plays) this.play();
        this.choose();
        this.compare.clipChanged();
        this.tell('clip', clip);
        this.update();
    }

    clear() {
        this.track.clear();
        this.compare.stop();
        this.update();
    }

    play() {
        this.compare.play();
        return this.track.play();
    }

    // Stops at the frame that is shown.
    pause() {
        this.track.pause();
        this.seek(this.frame);
    }

    seek(frame) {
        this.track.pause();
        this.track.seek(zs2Clamp(frame, 0, this.frames - 1));
        this.compare.follow();
        this.update();
        this.tell('act');
    }

    step(by) {
        this.seek((this.frame + by + this.frames) % this.frames);
    }

    toggle() {
        if (this.track.playing) this.pause();
        else {
            this.play();
            this.tell('act');
        }
    }

    // Words under the controls, for the user and a screen reader; `part`, 0 to 1, of a task that goes on.
    say(text, part = null, isError = false) {
        this.status.classList.toggle('zs2-error', isError);
        this.progress.hidden = part === null;
        if (part !== null) this.progress.value = part;
        if (this.status.textContent !== text) this.status.textContent = text;
    }

    fail(error) {
        this.say(error.message, null, true);
    }

    // The clips to choose among: `groups` are [title, clips].
    offer(groups) {
        this.groups = groups;
        this.choose();
        this.compare.offer();
    }

    // --- how it is made ---------------------------------------------------------------------------------------------

    _build(sections) {
        this.track = new Zs2Track('A', () => this.update());
        this.compare = new Zs2Compare(this);
        this.film = new Zs2Filmstrip(this);
        this.consistency = new Zs2Consistency(this);
        this.chooser = zs2Select('Clip', [], () => this._chosen());
        this.status = zs2Element('p', {class: 'zs2-status', role: 'status'});
        this.progress = zs2Element('progress', {max: 1, hidden: true, 'aria-label': zs2Words('Progress')});
        this.stage = zs2Element('div', {class: 'zs2-stage'}, this.track.element, this.compare.track.element);
        this.stage.addEventListener('click', () => this.toggle());
        this.element = zs2Element(
            'section', {class: 'zs2-player', 'aria-label': zs2Words('Clip player')},
            zs2Element('div', {class: 'zs2-head'}, this.chooser, this.compare.chooser),
            this.stage, this.compare.wipe, this.film.element, this._controls(), this.compare.element,
            this.consistency.element, ...sections.map(section => section(this)), this.progress, this.status,
        );
        const choices = [this.chooser, this.compare.chooser];
        for (const choice of choices) choice.addEventListener('pointerdown', () => this.tell('choices'));
    }

    _controls() {
        this.playing = zs2IconButton('play', 'Play', () => this.toggle(), {class: 'zs2-button zs2-play zs2-only-icon'});
        this.count = zs2Element('span', {class: 'zs2-count'});
        this.speed = zs2Select('Speed', zs2Speeds.map(speed => [speed, `${speed}×`]), () => this._speed());
        this.speed.title = zs2Words('Speed');
        this.speed.value = 1;
        return zs2Element(
            'div', {class: 'zs2-controls', role: 'group', 'aria-label': zs2Words('Playback')},
            zs2IconButton('back', 'Previous frame (,)', () => this.step(-1)),
            this.playing,
            zs2IconButton('forward', 'Next frame (.)', () => this.step(1)),
            this.count, this.speed, this.compare.button,
            zs2IconButton('full', 'Full screen', () => this._fullScreen()),
        );
    }

    // --- what happens -----------------------------------------------------------------------------------------------

    // Brings what is shown up to date; while it plays, with each picture of the screen.
    update() {
        if (!this.element) return; // a part of it speaks while it is made
        const {track, playing} = this;
        const word = zs2Words(track.playing ? 'Pause' : 'Play');
        if (playing.title !== word) {
            playing.replaceChildren(zs2Icon(track.playing ? 'pause' : 'play'));
            playing.title = word;
            playing.setAttribute('aria-label', word);
        }
        this.count.textContent = this.counter;
        this.count.dataset.short = `${this.frame + 1}/${this.frames}`;
        const {videoWidth, videoHeight} = track.video;
        if (videoWidth) this.stage.style.setProperty('--zs2-aspect', videoWidth / videoHeight);
        this.film.show(this.about?.filmstrip);
        this.consistency.show(this.about);
        this.film.update();
        this.consistency.update();
        if (this._shown !== this.about) {
            this._shown = this.about;
            this.tell('about', this.about);
        }
        if (track.playing && !this._waits) {
            this._waits = true;
            requestAnimationFrame(() => {
                this._waits = false;
                this.compare.keepUp();
                this.update();
            });
        }
    }

    choose() {
        zs2FillChooser(this.chooser, this.groups, this.clip);
    }

    _chosen() {
        const clip = zs2ChosenClip(this.chooser, this.groups);
        if (clip) this.show(clip);
        this.tell('act');
    }

    _speed() {
        this.track.video.defaultPlaybackRate = this.track.video.playbackRate = Number(this.speed.value);
        this.compare.keepUp();
    }

    async _fullScreen() {
        try {
            await (document.fullscreenElement ? document.exitFullscreen() : this.element.requestFullscreen());
        } catch {
            this.fail(new Error(zs2Words('The browser does not allow full screen.')));
        }
    }

    _key(event) {
        if (event.ctrlKey || event.altKey || event.metaKey) return;
        const types = event.target.matches('input:not([type=range]), textarea');
        const own = event.key === ' ' && event.target.matches('button, summary, select');
        const at = {Home: 0, End: this.frames - 1}[event.key];
        const does = {
            ',': () => this.step(-1),
            '.': () => this.step(1),
            ' ': () => this.toggle(),
            Home: () => this.seek(at),
            End: () => this.seek(at),
        }[event.key];
        if (!does || types || own || (at !== undefined && event.target.matches('select, input'))) return;
        event.preventDefault();
        event.stopPropagation();
        does();
    }
}

// The choices of `chooser` are the clips of `groups`, and `clip`, which is chosen.
function zs2FillChooser(chooser, groups, clip) {
    const option = ({name, label}) => zs2Element('option', {value: name}, label || name.split('/').pop());
    const known = groups.some(([, clips]) => clips.some(({name}) => name === clip?.name));
    const children = groups.filter(([, clips]) => clips.length).map(
        ([title, clips]) => zs2Element('optgroup', {label: zs2Words(title)}, ...clips.map(option)));
    chooser.replaceChildren(...(clip && !known ? [option(clip)] : []), ...children);
    chooser.value = clip?.name || '';
}

function zs2ChosenClip(chooser, groups) {
    return groups.flatMap(([, clips]) => clips).find(({name}) => name === chooser.value);
}
